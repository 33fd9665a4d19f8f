import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { RangeMap } from './range-map.js';

/** What a range map is, in the simplest words: a sorted array. The values are texts that name the range. */
class Model {
  ranges: { start: number; end: number; value: string }[] = [];

  overlapping(start: number, end: number): string | undefined {
    return this.ranges.find((range) => range.end > start && range.start < end)?.value;
  }

  insert(start: number, length: number, value: string): string | undefined {
    const obstacle = this.overlapping(start, start + length);
    if (obstacle !== undefined) return obstacle;
    const at = this.ranges.findIndex((range) => range.start > start);
    this.ranges.splice(at < 0 ? this.ranges.length : at, 0, { start, end: start + length, value });
    return undefined;
  }

  delete(start: number): string | undefined {
    const at = this.ranges.findIndex((range) => range.start === start);
    return at < 0 ? undefined : this.ranges.splice(at, 1)[0].value;
  }

  fit(length: number, alignment: number): string | undefined {
    return this.ranges.find((range) => roomOf(range, alignment) >= length)?.value;
  }

  room(alignment: number): number {
    return this.ranges.reduce((most, range) => Math.max(most, roomOf(range, alignment)), 0);
  }
}

function roomOf({ start, end }: { start: number; end: number }, alignment: number): number {
  const over = start % alignment;
  return end - start - (over === 0 ? 0 : alignment - over);
}

const ALIGNMENTS = [1, 8, 64];

type Step = [kind: 'insert' | 'delete' | 'pop' | 'resize', place: number, length: number];

/** Where steps take place: at `base + place * stride`, `length * unit` long. */
interface Shape {
  base?: number;
  unit?: number;
  stride?: number;
  asked?: number;
  rooms?: boolean;
}

/** Runs steps on a map and the model; asks both about the place of every `asked`th, and checks the tree now and then. */
function compare(steps: Iterable<Step>, shape: Shape): RangeMap<string> {
  const { base = 0, unit = 1, stride = unit, asked = 1, rooms = false } = shape;
  const map = new RangeMap<string>();
  const model = new Model();
  let count = 0;
  for (const [kind, place, length] of steps) {
    const start = base + place * stride;
    const end = start + length * unit;
    if (kind === 'insert') {
      const value = `${start}+${length}#${count}`;
      assert.equal(map.insert(start, length * unit, value), model.insert(start, length * unit, value));
    } else if (kind === 'delete') {
      assert.equal(map.delete(start), model.delete(start));
    } else if (kind === 'resize' && model.ranges.length > 0) {
      const at = place % model.ranges.length;
      const range = model.ranges[at];
      map.floor(range.start);
      map.setFoundEnd((range.end = Math.min(range.start + length * unit, model.ranges[at + 1]?.start ?? Infinity)));
    } else if (model.ranges.length > 0) {
      const victim = model.ranges[place % model.ranges.length].start;
      assert.equal(map.delete(victim), model.delete(victim));
    }
    assert.equal(map.size, model.ranges.length);
    if (++count % asked !== 0) continue;
    for (const address of [start - 1, start, end - 1, end]) {
      const floor = model.ranges.filter((range) => range.start <= address).at(-1);
      assert.equal(map.floor(address), floor?.value);
      assert.equal(map.at(address), floor !== undefined && floor.end > address ? floor.value : undefined);
      assert.equal(map.above(address), model.ranges.find((range) => range.start > address)?.value);
    }
    assert.equal(map.overlapping(start, end), model.overlapping(start, end));
    const same = model.ranges.find((range) => range.start === start && range.end === end);
    assert.equal(map.exact(start, length * unit), same?.value);
    if (rooms) {
      const alignment = ALIGNMENTS[count % ALIGNMENTS.length];
      assert.equal(map.fit(length, alignment), model.fit(length, alignment));
      assert.equal(map.room(alignment), model.room(alignment));
    }
    if (count % (rooms ? 5 : 20) === 0) map.checkInvariants();
  }
  map.checkInvariants();
  const entries = model.ranges.map(({ start, end, value }) => [start, end - start, value]);
  assert.deepEqual([...map.entries()], entries);
  assert.deepEqual(
    [...map.values()],
    model.ranges.map((range) => range.value),
  );
  return map;
}

function steps(places: number, lengths: number, most: number): fc.Arbitrary<Step[]> {
  const kind = fc.constantFrom<Step[0][]>('insert', 'insert', 'insert', 'delete', 'pop', 'resize');
  const step = fc.tuple(kind, fc.nat(places - 1), fc.integer({ min: 1, max: lengths }));
  return fc.array(step, { maxLength: most, size: 'max' });
}

/** A small generator of repeatable noise, for runs too long to be shrunk. */
function noise(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

describe('RangeMap', () => {
  it('is empty at first', () => {
    const map = new RangeMap<string>();
    assert.equal(map.size, 0);
    for (const answer of [map.at(0), map.floor(9), map.above(0), map.overlapping(0, 2 ** 53), map.exact(0, 1)]) {
      assert.equal(answer, undefined);
    }
    assert.equal(map.delete(0), undefined);
    assert.equal(map.fit(1, 1), undefined);
    assert.equal(map.room(1), 0);
    assert.deepEqual([...map.entries()], []);
  });

  it('names the lowest range in the way, and changes nothing then', () => {
    const map = new RangeMap<string>();
    map.insert(100, 10, 'a');
    map.insert(110, 10, 'b');
    map.insert(130, 10, 'c');
    assert.equal(map.insert(105, 100, 'x'), 'a');
    assert.equal(map.insert(119, 100, 'x'), 'b');
    assert.equal(map.insert(0, 2 ** 53, 'x'), 'a');
    assert.equal(map.insert(120, 11, 'x'), 'c');
    assert.equal(map.insert(132, 2, 'x'), 'c');
    assert.deepEqual([...map.values()], ['a', 'b', 'c']);
    assert.equal(map.insert(120, 10, 'fits exactly'), undefined);
  });

  it('holds ranges up to 2^53', () => {
    const map = new RangeMap<string>();
    assert.equal(map.insert(2 ** 53 - 4096, 4096, 'top'), undefined);
    assert.equal(map.insert(0, 2 ** 53 - 4096, 'rest'), undefined);
    assert.equal(map.at(2 ** 53 - 1), 'top');
    assert.equal(map.at(2 ** 53 - 4097), 'rest');
    assert.equal(map.room(4096), 2 ** 53 - 4096);
  });

  it('does as a sorted array does: few places, so that ranges often meet', () => {
    fc.assert(
      fc.property(steps(200, 4, 300), fc.boolean(), (list, rooms) => {
        compare(list, { rooms });
      }),
      { numRuns: 100 },
    );
  });

  it('does as a sorted array does: many places beyond 2^32', () => {
    fc.assert(
      fc.property(steps(100_000, 3, 500), (list) => {
        compare(list, { base: 2 ** 47, unit: 4096 });
      }),
      { numRuns: 50 },
    );
  });

  it('does as a sorted array does: many lengths, so that the room below a node changes often', () => {
    fc.assert(
      fc.property(steps(400, 60, 400), (list) => {
        compare(list, { stride: 64, rooms: true });
      }),
      { numRuns: 50 },
    );
  });

  for (const [order, shape] of [
    ['ascending', (i: number) => i],
    ['descending', (i: number) => 2999 - i],
    ['scattered', (i: number) => (i * 709) % 3000],
  ] as const) {
    it(`grows to several levels in ${order} order and shrinks to nothing again`, () => {
      const random = noise(order.length);
      function* work(): Iterable<Step> {
        for (let i = 0; i < 3000; i++) yield ['insert', shape(i) * 4 + random(2), 1 + random(2)];
        for (let i = 0; i < 1000; i++) yield [random(2) === 0 ? 'insert' : 'pop', random(12_000), 1 + random(3)];
        for (let i = 0; i < 4000; i++) yield ['pop', order === 'ascending' ? 0 : random(1 << 20), 1];
      }
      assert.equal(compare(work(), { base: 2 ** 40, asked: 5, rooms: true }).size, 0);
    });
  }

  it('starts to keep room for an alignment when there already are several levels', () => {
    const map = new RangeMap<number>();
    for (let i = 0; i < 5000; i++) map.insert(i * 64 + 1, 1 + (i % 60), i);
    assert.equal(map.fit(60, 1), 59);
    map.insert(2 ** 20, 17, -1);
    assert.equal(map.fit(17, 2 ** 20), -1);
    map.checkInvariants();
    map.clear();
    assert.equal(map.size, 0);
    assert.equal(map.room(1), 0);
    map.checkInvariants();
  });

  it('may be changed while it is iterated', () => {
    const map = new RangeMap<number>();
    for (let i = 0; i < 1000; i++) map.insert(i * 10, 5, i);
    const seen: number[] = [];
    for (const [start, , value] of map.entries()) {
      seen.push(value);
      map.delete(start);
      if (value % 2 === 0) map.delete(start + 10);
      if (value === 500) map.insert(start + 6, 2, -500);
    }
    const even = Array.from({ length: 500 }, (_, i) => i * 2);
    even.splice(251, 0, -500);
    assert.deepEqual(seen, even);
    assert.equal(map.size, 0);
  });
});
