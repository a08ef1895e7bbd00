"""The element's parser by itself, in Node: what a server's text costs it, however it is cut."""

import subprocess

from tests.browser.conftest import STATIC
from tests.fixtures.programs import tool

PROGRAM = r"""
const source = require("fs").readFileSync(process.argv[1], "utf8");
const [text] = /^function parser[^]*?^}$/m.exec(source);
const parser = eval(`(${text})`);

function parse(pieces) {
  const frames = [];
  const feed = parser((frame) => frames.push(frame), (ms) => frames.push({ retry: ms }));
  pieces.forEach(feed);
  return frames;
}

function cut(whole, size) {
  const pieces = [];
  for (let at = 0; at < whole.length; at += size) pieces.push(whole.slice(at, at + size));
  return pieces;
}

const whole = "retry: 5\r\nid: 1\r\rdata: a\r\ndata: b\n\nevent: t\ndata:  c:d \r\r\n: x\r\n\r\nid: 2\ndata\n\n";
const expected = JSON.stringify(parse([whole]));
for (let size = 1; size < whole.length; size++) {
  const found = JSON.stringify(parse(cut(whole, size)));
  if (found !== expected) throw new Error(`cut by ${size}: ${found} instead of ${expected}`);
}
if (parse([whole]).length !== 5) throw new Error(expected);

// Of user's and system's time only the sum is exact: the kernel divides it by what its ticks have happened to meet.
function cost(n) {
  const pieces = cut("data: " + "x".repeat(n) + "\n\n", 16);
  gc();
  const began = process.cpuUsage();
  if (parse(pieces)[0].data.length !== n) throw new Error("the event is not whole");
  const { user, system } = process.cpuUsage(began);
  return user + system;
}

let [once, twice] = [Infinity, Infinity];
for (let attempt = 0; attempt < 50; attempt++) {
  once = Math.min(once, cost(1 << 21));
  twice = Math.min(twice, cost(1 << 22));
  if (attempt > 2 && twice <= 2.5 * once) process.exit(0);
}
throw new Error(`${once} µs, and for twice as much ${twice} µs`);
"""


def test_text_costs_its_length_however_it_is_cut() -> None:
    """Frames are the same wherever the text is cut, and an event of twice the length costs twice as much."""
    alone = ["--single-threaded", "--expose-gc", "--max-semi-space-size=64"]
    done = subprocess.run(
        [tool("node"), *alone, "-e", PROGRAM, str(STATIC / "headrace.js")], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
