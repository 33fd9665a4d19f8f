/** A reporter of Node's test runner: a line of JSON with what was skipped, by the reason, and which files failed. */

/**
 * @typedef {{ skipped: [reason: string, tests: string[]][], failed: string[] }} Report
 * @typedef {{ type: string, data: { name: string, file?: string, skip?: string | boolean } }} TestEvent
 */

/** @param {AsyncIterable<TestEvent>} events */
export default async function* report(events) {
  /** @type {Map<string, string[]>} */
  const skipped = new Map();
  /** @type {Set<string>} */
  const failed = new Set();
  for await (const { type, data } of events) {
    if (type !== 'test:pass' && type !== 'test:fail') continue;
    // Where a process ended badly, the test that failed is the file itself.
    if (type === 'test:fail') failed.add(data.file ?? data.name);
    if (data.skip === undefined || data.skip === false) continue;
    const reason = typeof data.skip === 'string' && data.skip !== '' ? data.skip : 'no reason was given';
    skipped.set(reason, [...(skipped.get(reason) ?? []), data.name]);
  }
  yield JSON.stringify({ skipped: [...skipped], failed: [...failed] });
}
