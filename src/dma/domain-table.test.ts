/** Memory with an IOVA for each of many pages: what is planned, booked and undone in many turns of the event loop. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { isDmaError, type ErrorCode } from '../errors.js';
import { Bench, PAGE, part } from '../../test/fakes/dma/address-space.js';

const A = 0x100000000;
const OTHER = 0x10000000;
const PAGES = 5000;
const LENGTH = PAGES * PAGE;

/** No two pages are neighbours for the device. */
const SCATTERED = Float64Array.from({ length: PAGES }, (_, page) => 2 ** 33 + 2 * page * PAGE);

function error(code: ErrorCode, text: string): (thrown: unknown) => boolean {
  return (thrown) => isDmaError(thrown, code) && thrown.message.includes(text);
}

function bench(options: ConstructorParameters<typeof Bench>[0] = {}, iovas: ArrayLike<number> = SCATTERED): Bench {
  const made = new Bench(options);
  made.area(A, PAGES, { iovas, label: 'scattered' });
  return made;
}

/** What is left after a failure, or the end. */
function left({ domain, areas, space }: Bench): unknown {
  return [domain.entries, domain.bytes, areas.at(A)?.holders.size, space.table.length, space.violations];
}
const NOTHING = [0, 0, 0, 0, []];

test('planning many pages lets others go on, before anything is mapped', async () => {
  const made = bench();
  const { domain, space } = made;
  let callsAtFirstTurn: number | undefined;
  void turn().then(() => (callsAtFirstTurn = space.calls.length));
  const mapping = await domain.mapForAsync('d0', part(A, LENGTH));
  assert.equal(callsAtFirstTurn, 0);
  assert.deepEqual(
    [domain.entries, mapping.iovaOf((A + 5 * PAGE) as typeof mapping.va), domain.iovaOf(A + LENGTH - 1)],
    [PAGES, SCATTERED[5], SCATTERED[PAGES - 1] + PAGE - 1],
  );
  const share = await domain.mapForAsync('d1', part(A, LENGTH));
  assert.equal(domain.entries, PAGES);
  share.unmap();
  const gone = mapping.unmapAsync();
  assert.throws(() => mapping.unmap(), error('EBUSY', 'it is being unmapped'));
  await gone;
  assert.deepEqual([left(made), domain.iovaOf(A)], [NOTHING, -1]);
});

test('many pages that follow each other are one entry', async () => {
  const made = bench(
    {},
    Float64Array.from(SCATTERED, (_, page) => 2 ** 33 + page * PAGE),
  );
  const mapping = await made.domain.mapForAsync('d0', part(A, LENGTH));
  assert.deepEqual(mapping.segments, [{ va: A, iova: 2 ** 33, length: LENGTH }]);
  await mapping.unmapAsync();
  assert.deepEqual(left(made), NOTHING);
});

test('what comes in the way while pages are booked ends it, and all is undone', async () => {
  const made = bench();
  made.area(OTHER, 1);
  const mapping = made.domain.mapForAsync('d0', part(A, LENGTH));
  const inTheWay = made.domain.mapFor('d1', part(OTHER, PAGE), { iova: SCATTERED[PAGES - 1] });
  await assert.rejects(mapping, error('EEXIST', 'is taken by the mapping of d1'));
  inTheWay.unmap();
  assert.deepEqual(left(made), NOTHING);
  await (await made.domain.mapForAsync('d0', part(A, LENGTH))).unmapAsync();
});

test('memory that another maps while its pages are booked ends it', async () => {
  const made = bench();
  const mapping = made.domain.mapForAsync('d0', part(A, LENGTH));
  const inTheWay = made.domain.mapFor('d1', part(A + LENGTH - PAGE, PAGE));
  await assert.rejects(mapping, error('EEXIST', 'it overlaps the mapping of d1'));
  inTheWay.unmap();
  assert.deepEqual(left(made), NOTHING);
});

test('a table that is not right, or too large for the domain, ends it with nothing done', async () => {
  const twice = SCATTERED.slice();
  twice[PAGES - 1] = twice[1];
  const cases: [ErrorCode, string, Bench][] = [
    ['EINVAL', 'to two parts of it', bench({}, twice)],
    ['EINVAL', 'breaks inside a unit', bench({ constraints: { granule: 2 * PAGE } })],
    ['EINVAL', 'has other IOVAs', bench({ constraints: { iova: 'identity' } })],
    [
      'ENOSPC',
      `takes 100 mappings; 100 are left, and this needs ${PAGES}`,
      bench({ constraints: { entryLimit: 100 } }),
    ],
    ['ERANGE', 'not inside a window', bench({ constraints: { windows: [] } })],
  ];
  for (const [code, text, made] of cases) {
    await assert.rejects(made.domain.mapForAsync('d0', part(A, LENGTH)), error(code, text));
    assert.deepEqual(left(made), NOTHING);
    assert.equal(made.space.calls.length, 0);
  }
});

test('it is given up while pages are booked, by a signal and by a device that leaves', async () => {
  const made = bench();
  const stop = new AbortController();
  const mapping = made.domain.mapForAsync('d0', part(A, LENGTH), { signal: stop.signal });
  await turn();
  stop.abort();
  await assert.rejects(mapping, error('ECANCELED', 'given up'));
  assert.deepEqual([left(made), made.space.calls.length], [NOTHING, 0]);

  made.domain.attach('d0');
  const other = made.domain.mapForAsync('d0', part(A, LENGTH));
  const detached = made.domain.detach('d0');
  await assert.rejects(other, error('ECANCELED', 'd0 is leaving'));
  await detached;
  assert.deepEqual(left(made), NOTHING);
});

test('of two that unmap the same many pages, one by one and at once, the last undoes them', async () => {
  const made = new Bench();
  const pages = 0x10000;
  made.area(A, pages, { iovas: Float64Array.from({ length: pages }, (_, page) => 2 ** 33 + 2 * page * PAGE) });
  const one = made.domain.mapFor('d0', part(A, pages * PAGE));
  const two = made.domain.mapFor('d1', part(A, pages * PAGE));
  const gone = one.unmapAsync();
  await turn();
  two.unmap();
  await gone;
  assert.deepEqual([left(made), made.differences()], [NOTHING, []]);
});
