/* Loaded before libc into every process of the tortured system: a clock that can be set back, and a data disk that can
 * be full. What holds is in a small file that all of them have mapped; the torture writes it. Times are nanoseconds. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct control {
    volatile int64_t behind_ns; /* by how much wall time is behind the machine's */
    volatile int64_t disk_full; /* whether no file below base/ may grow */
};

static const struct control nothing;
static const struct control *control = &nothing;

__attribute__((constructor)) static void map_control(void)
{
    const char *path = getenv("TORTURE_CONTROL");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *mapped = mmap(NULL, sizeof(struct control), PROT_READ, MAP_SHARED, fd, 0);
    if (mapped != MAP_FAILED)
        control = mapped;
    close(fd);
}

int clock_gettime(clockid_t clock, struct timespec *at)
{
    int status = syscall(SYS_clock_gettime, clock, at);
    int64_t behind = control->behind_ns;
    if (status == 0 && behind && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t ns = at->tv_sec * 1000000000LL + at->tv_nsec - behind;
        at->tv_sec = ns / 1000000000LL;
        at->tv_nsec = ns % 1000000000LL;
    }
    return status;
}

int gettimeofday(struct timeval *at, void *zone)
{
    struct timespec now;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &now) != 0)
        return -1;
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at)
        *at = now.tv_sec;
    return now.tv_sec;
}

static int refuses(int fd, int64_t end)
{
    struct stat file;
    char link[64], path[4096];
    if (!control->disk_full || fstat(fd, &file) != 0 || !S_ISREG(file.st_mode) || end <= file.st_size)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return strstr(path, "/base/") != NULL;
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t at)
{
    if (refuses(fd, at + (int64_t)length)) {
        errno = ENOSPC;
        return -1;
    }
    return syscall(SYS_pwrite64, fd, data, length, at);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at)
{
    static ssize_t (*real)(int, const struct iovec *, int, off_t);
    int64_t end = at;
    for (int i = 0; i < count; i++)
        end += parts[i].iov_len;
    if (refuses(fd, end)) {
        errno = ENOSPC;
        return -1;
    }
    if (!real)
        real = (ssize_t (*)(int, const struct iovec *, int, off_t))dlsym(RTLD_NEXT, "pwritev");
    return real(fd, parts, count, at);
}

int posix_fallocate(int fd, off_t at, off_t length)
{
    static int (*real)(int, off_t, off_t);
    if (refuses(fd, at + length))
        return ENOSPC;
    if (!real)
        real = (int (*)(int, off_t, off_t))dlsym(RTLD_NEXT, "posix_fallocate");
    return real(fd, at, length);
}
