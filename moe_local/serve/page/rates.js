// From the totals of frames to what happens a second, over the last two minutes.

const KEPT = 120; // seconds
const OVER = 1; // seconds that a rate is taken over

export class Rates {
  #frames = []; // {time, counters} of the last OVER seconds
  history = []; // {time, hitRate, bytesRead, stalled, tokens}; what is not known is null

  /** The rates up to a frame, which are kept. */
  take({ time, counters }) {
    const last = this.#frames.at(-1);
    if (last && (time < last.time || counters.misses < last.counters.misses)) this.#frames = []; // another server
    this.#frames.push({ time, counters });
    while (this.#frames.length > 2 && time - this.#frames[1].time >= OVER) this.#frames.shift();
    const rates = between(this.#frames[0], { time, counters });
    this.history.push({ time, ...rates });
    this.history = this.history.filter((point) => point.time > time - KEPT && point.time <= time);
    return rates;
  }
}

function between(former, { time, counters }) {
  const elapsed = time - former.time;
  const since = (name) => counters[name] - former.counters[name];
  const needed = since("hits") + since("misses");
  return {
    hitRate: needed > 0 ? since("hits") / needed : null,
    bytesRead: elapsed > 0 ? since("bytes_read") / elapsed : null,
    stalled: elapsed > 0 ? Math.min(1, since("stall_seconds") / elapsed) : null,
    tokens: elapsed > 0 ? since("tokens") / elapsed : null,
  };
}
