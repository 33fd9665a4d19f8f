/** Times, as the command tells them. */

/** A time for people. @param us microseconds */
export function formatTime(us: number): string {
  if (us < 1) return `${Math.round(us * 1000)} ns`;
  if (us < 1000) return `${us < 10 ? us.toFixed(1) : us.toFixed(0)} us`;
  if (us < 1e6) return `${us < 10_000 ? (us / 1000).toFixed(1) : (us / 1000).toFixed(0)} ms`;
  return `${(us / 1e6).toFixed(1)} s`;
}
