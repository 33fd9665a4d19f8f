/** How long the event loop waits. */

/** The longest time between two turns of a timer of 1 ms while `work` runs, in milliseconds. */
export async function longestDelay(work: () => Promise<unknown>): Promise<number> {
  let last = performance.now();
  let most = 0;
  const look = (): void => {
    const now = performance.now();
    most = Math.max(most, now - last);
    last = now;
  };
  const timer = setInterval(look, 1);
  try {
    await work();
    look();
    return most;
  } finally {
    clearInterval(timer);
  }
}
