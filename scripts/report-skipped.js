/** A reporter of Node's test runner: which tests were skipped, grouped by the reason. */

/** @param {AsyncIterable<{ type: string, data: { name: string, skip?: string | boolean, details?: { type?: string } } }>} events */
export default async function* reportSkipped(events) {
  /** @type {Map<string, string[]>} */
  const byReason = new Map();
  for await (const { type, data } of events) {
    if (type !== 'test:pass' && type !== 'test:fail') continue;
    if (data.skip === undefined || data.skip === false) continue;
    const reason = typeof data.skip === 'string' && data.skip !== '' ? data.skip : 'no reason was given';
    byReason.set(reason, [...(byReason.get(reason) ?? []), data.name]);
  }
  const count = [...byReason.values()].reduce((sum, names) => sum + names.length, 0);
  yield count === 0 ? '\nNo test was skipped.\n' : `\n${count} skipped:\n`;
  for (const [reason, names] of byReason) {
    yield `- ${reason}\n`;
    for (const name of names) yield `    ${name}\n`;
  }
}
