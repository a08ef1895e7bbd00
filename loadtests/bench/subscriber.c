/*
 * What `subscriber` does beyond `ssebench`: tools.py includes this file into a copy of ssebench.c and calls its functions.
 *
 * Each event that a publishing session makes has a number near the start of its data, n=<number> or "n": <number>:
 *
 *     number = count * SESSIONS + session       count: 1, 2, 3 ... in each session
 *
 * Over all connections every number must come once. On one connection the numbers of one session must rise, since a
 * session publishes an event after the commit of the one before. The report gets four further counts:
 *
 *     numbers      different numbers that came
 *     repeated     events whose number had come before
 *     disordered   events after an event of the same session and connection with a greater number
 *     unnumbered   events without a number
 *
 * Signals: after SIGUSR1 a line "EVENTS <number>" on stderr tells how many events came so far. SIGUSR2 forgets the
 * latencies so far, at the end of a warm-up.
 */

static uint64_t *numbers_seen, numbers_room;     /* bit n: the number n has come; room for so many bits */
static uint64_t *numbers_last;                   /* [connection][session]: the greatest number so far */
static uint64_t numbers, repeated, disordered, numbered;
static volatile sig_atomic_t count_asked, forget_asked;

static void on_question(int sig) { if (sig == SIGUSR1) count_asked = 1; else forget_asked = 1; }

__attribute__((constructor)) static void hear_questions(void)
{
    signal(SIGUSR1, on_question);
    signal(SIGUSR2, on_question);
}

static void answer_questions(void)
{
    if (count_asked) {
        count_asked = 0;
        fprintf(stderr, "EVENTS %" PRIu64 "\n", events_total);
    }
    if (forget_asked) {
        forget_asked = 0;
        memset(&h_lat, 0, sizeof h_lat);
    }
}

/* Marks a number as come; returns whether it had come before. */
static int mark_number(uint64_t n)
{
    uint64_t bit = 1ull << (n & 63), before;
    if (n >= 1ull << 32) {
        fprintf(stderr, "subscriber: the number %" PRIu64 " is too large\n", n);
        exit(1);
    }
    if (n >= numbers_room) {
        uint64_t room = n < 1u << 20 ? 1u << 20 : 2 * n / 64 * 64;
        numbers_seen = realloc(numbers_seen, room / 8);
        if (!numbers_seen) {
            perror("realloc");
            exit(1);
        }
        memset((char *)numbers_seen + numbers_room / 8, 0, (room - numbers_room) / 8);
        numbers_room = room;
    }
    before = numbers_seen[n >> 6] & bit;
    numbers_seen[n >> 6] |= bit;
    return before != 0;
}

/* One data line, from its colon on. */
static void check_number(const struct conn *c, const char *p, const char *end)
{
    uint64_t n, *last;
    if (p >= end || !find_token(p + 1, end, 'n', &n))
        return;
    if (!numbers_last && !(numbers_last = calloc((size_t)opt.n * SESSIONS, sizeof *numbers_last))) {
        perror("calloc");
        exit(1);
    }
    numbered++;
    if (mark_number(n))
        repeated++;
    else
        numbers++;
    last = &numbers_last[(size_t)(c - conns) * SESSIONS + n % SESSIONS];
    if (n < *last)
        disordered++;
    else
        *last = n;
}

static void report_numbers(void)
{
    printf("\"numbers\": %" PRIu64 ", \"repeated\": %" PRIu64 ", \"disordered\": %" PRIu64 ", \"unnumbered\": %" PRIu64
           ", \"last_event_ns\": %" PRIu64 ", ", numbers, repeated, disordered, events_total - numbered, t_last_event);
}
