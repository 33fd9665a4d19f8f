/** Captures: every variant of pcap and pcapng, read in pieces of any size, written, and read again. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { throwsDma } from '../../../test/shared/errors.js';
import { isDmaError } from '../../errors.js';
import type { CaptureFrame } from './capture-frame.js';
import { CaptureReader } from './capture-reader.js';
import { captureKindOf, CaptureWriter, type CaptureKind } from './capture-writer.js';

type Frame = Pick<CaptureFrame, 'wire' | 'seconds' | 'nanos' | 'link'> & { readonly data: readonly number[] };

/** Writes numbers of one byte order. */
class Bytes {
  readonly #parts: number[] = [];
  readonly #little: boolean;

  constructor(little: boolean) {
    this.#little = little;
  }

  number(value: number | bigint, width: 1 | 2 | 4 | 8): this {
    const bytes = new DataView(new ArrayBuffer(8));
    if (width === 8) bytes.setBigInt64(0, BigInt(value), this.#little);
    else if (width === 4) bytes.setUint32(0, Number(value), this.#little);
    else if (width === 2) bytes.setUint16(0, Number(value), this.#little);
    else bytes.setUint8(0, Number(value));
    for (let i = 0; i < width; i++) this.#parts.push(bytes.getUint8(i));
    return this;
  }

  add(bytes: Iterable<number>): this {
    this.#parts.push(...bytes);
    return this;
  }

  pad(): this {
    while (this.#parts.length % 4 !== 0) this.#parts.push(0);
    return this;
  }

  get all(): number[] {
    return this.#parts;
  }
}

/** A block of pcapng around its body. */
function block(little: boolean, type: number, body: readonly number[]): number[] {
  const padded = [...body, ...Array<number>((4 - (body.length % 4)) % 4).fill(0)];
  const size = 12 + padded.length;
  return new Bytes(little).number(type, 4).number(size, 4).add(padded).number(size, 4).all;
}

function section(little: boolean): number[] {
  return block(little, 0x0a0d0d0a, new Bytes(little).number(0x1a2b3c4d, 4).number(1, 2).number(0, 2).number(-1, 8).all);
}

function option(little: boolean, code: number, value: readonly number[]): number[] {
  return new Bytes(little).number(code, 2).number(value.length, 2).add(value).pad().all;
}

function face(little: boolean, link: number, options: readonly number[] = [], snap = 0): number[] {
  return block(little, 1, new Bytes(little).number(link, 2).number(0, 2).number(snap, 4).add(options).all);
}

function enhanced(little: boolean, face: number, ticks: bigint, data: readonly number[], wire: number): number[] {
  const body = new Bytes(little).number(face, 4);
  body.number(ticks >> 32n, 4).number(ticks & 0xffffffffn, 4);
  return block(little, 6, body.number(data.length, 4).number(wire, 4).add(data).all);
}

function pcap(
  little: boolean,
  magic: number,
  frames: readonly { seconds: number; part: number; data: number[]; wire: number }[],
): number[] {
  const file = new Bytes(little).number(magic, 4).number(2, 2).number(4, 2).number(0, 4).number(0, 4);
  file.number(65_535, 4).number(1, 4);
  for (const { seconds, part, data, wire } of frames) {
    file.number(seconds, 4).number(part, 4).number(data.length, 4).number(wire, 4);
    if (magic === 0xa1b2cd34) file.number(1, 4).number(0, 2).number(0, 1).number(0, 1);
    file.add(data);
  }
  return file.all;
}

/** All frames of a file that comes in pieces of `size` bytes. */
function framesOf(file: readonly number[], size = file.length): Frame[] {
  const reader = new CaptureReader();
  const frames: Frame[] = [];
  // The caller uses one buffer for all pieces.
  const buffer = new Uint8Array(size);
  for (let at = 0; at < file.length; at += size) {
    const piece = file.slice(at, at + size);
    buffer.set(piece);
    reader.push(buffer.subarray(0, piece.length));
    for (let frame = reader.next(); frame !== undefined; frame = reader.next())
      frames.push({
        data: [...frame.data],
        wire: frame.wire,
        seconds: frame.seconds,
        nanos: frame.nanos,
        link: frame.link,
      });
    buffer.fill(0xee);
  }
  reader.end();
  return frames;
}

function written(kind: CaptureKind, link: number, frames: readonly Frame[]): number[] {
  const file: number[] = [];
  const writer = new CaptureWriter(kind, link, (bytes) => file.push(...bytes));
  for (const frame of frames) {
    writer.begin(frame, frame.data.length);
    writer.add(Uint8Array.from(frame.data));
    writer.end(frame.data.length);
  }
  writer.flush();
  return file;
}

const DATA = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

describe('captures', () => {
  for (const little of [true, false])
    for (const [magic, nanosPerTick, what] of [
      [0xa1b2c3d4, 1000, 'microseconds'],
      [0xa1b23c4d, 1, 'nanoseconds'],
      [0xa1b2cd34, 1000, 'long headers'],
    ] as const)
      it(`pcap with ${what}, ${little ? 'least' : 'most'} significant byte first`, () => {
        const file = pcap(little, magic, [
          { seconds: 1_700_000_000, part: 999_999, data: DATA, wire: 15 },
          { seconds: 4_294_967_295, part: 0, data: [], wire: 1500 },
          { seconds: 0, part: 1, data: [...DATA, ...DATA], wire: 100 },
        ]);
        const expected: Frame[] = [
          { seconds: 1_700_000_000, nanos: 999_999 * nanosPerTick, data: DATA, wire: 15, link: 1 },
          { seconds: 4_294_967_295, nanos: 0, data: [], wire: 1500, link: 1 },
          { seconds: 0, nanos: nanosPerTick, data: [...DATA, ...DATA], wire: 100, link: 1 },
        ];
        for (const size of [1, 3, 16, 1000]) assert.deepEqual(framesOf(file, size), expected);
      });

  for (const little of [true, false])
    it(`pcapng, ${little ? 'least' : 'most'} significant byte first: every kind of block with frames`, () => {
      const file = [
        ...section(little),
        ...block(little, 0x0bad, [1, 2, 3, 4, 5]),
        ...face(little, 1),
        ...face(little, 113, option(little, 9, [9]), 20),
        ...enhanced(little, 0, 1_700_000_000_123_456n, DATA, 20),
        ...enhanced(little, 1, 1_700_000_000_123_456_789n, DATA, 15),
        // The obsolete block: interface and drops have 16 bits each.
        ...block(
          little,
          2,
          new Bytes(little).number(1, 2).number(7, 2).number(0, 4).number(5, 4).number(2, 4).number(3, 4).add([8, 9])
            .all,
        ),
        ...block(little, 3, new Bytes(little).number(15, 4).add(DATA).all),
        ...block(little, 4, []),
      ];
      const expected: Frame[] = [
        { seconds: 1_700_000_000, nanos: 123_456_000, data: DATA, wire: 20, link: 1 },
        { seconds: 1_700_000_000, nanos: 123_456_789, data: DATA, wire: 15, link: 113 },
        { seconds: 0, nanos: 5, data: [8, 9], wire: 3, link: 113 },
        { seconds: 0, nanos: 0, data: DATA, wire: 15, link: 1 },
      ];
      for (const size of [1, 7, 64, 10_000]) assert.deepEqual(framesOf(file, size), expected);
    });

  it('pcap of versions that had the two lengths the other way round', () => {
    for (const [minor, isSwapped] of [
      [1, true],
      [2, true],
      [3, true],
      [3, false],
      [4, false],
      [543, true],
    ] as const) {
      const file = pcap(true, 0xa1b2c3d4, [{ seconds: 1, part: 2, data: DATA, wire: 100 }]);
      file[6] = minor & 255;
      file[7] = minor >> 8;
      if (isSwapped) file.splice(32, 8, ...file.slice(36, 40), ...file.slice(32, 36));
      const expected = [{ seconds: 1, nanos: 2000, data: DATA, wire: 100, link: 1 }];
      assert.deepEqual(framesOf(file, 7), expected, `version 2.${minor}`);
    }
  });

  it('that are to have a time that their format does not have are refused, and nothing is written of the frame', () => {
    for (const [kind, seconds] of [
      ['pcap', -1],
      ['pcap', 2 ** 32],
      ['pcap', NaN],
      ['pcapng', -1],
      ['pcapng', 18_446_744_073],
    ] as const) {
      const file: number[] = [];
      const writer = new CaptureWriter(kind, 1, (bytes) => file.push(...bytes));
      throwsDma('ERANGE', () => writer.begin({ seconds, nanos: 0, wire: 0 }, 0), /no such time/);
      writer.flush();
      assert.deepEqual(framesOf(file), []);
    }
    const last = { seconds: 18_446_744_072, nanos: 999_999_999, wire: 0, data: [], link: 1 };
    assert.deepEqual(framesOf(written('pcapng', 1, [last])), [last]);
  });

  it('pcapng with units of time of any size, and seconds to add', () => {
    const times: [unit: number, ticks: bigint, seconds: number, nanos: number][] = [
      [0, 1_700_000_000n, 1_700_000_000, 0],
      [3, 1_700_000_000_001n, 1_700_000_000, 1_000_000],
      [6, 2n ** 63n, 9_223_372_036_854, 775_808_000],
      [9, 1_700_000_000_999_999_999n, 1_700_000_000, 999_999_999],
      [12, 1_700_000_000_999_999_999_999n / 1000n, 1_700_000, 999_999],
      [0x80 | 10, 1_700_000_000n * 1024n + 512n, 1_700_000_000, 500_000_000],
      [0x80 | 32, (1_700_000_000n << 32n) + (1n << 31n), 1_700_000_000, 500_000_000],
    ];
    for (const [unit, ticks, seconds] of times) {
      const exactUnit = (unit & 0x80) === 0 ? 10n ** BigInt(unit) : 2n ** BigInt(unit & 0x7f);
      const whole = BigInt.asUintN(64, ticks);
      const file = [
        ...section(true),
        ...face(true, 1, [...option(true, 9, [unit]), ...option(true, 14, new Bytes(true).number(-5, 8).all)]),
        ...enhanced(true, 0, whole, DATA, 15),
      ];
      const [frame] = framesOf(file);
      assert.equal(frame.seconds, Number(whole / exactUnit) - 5, `unit ${unit}`);
      assert.equal(frame.nanos, Number(((whole % exactUnit) * 1_000_000_000n) / exactUnit), `unit ${unit}`);
      if (unit !== 12) assert.equal(frame.seconds, seconds - 5);
    }
  });

  it('pcapng of several sections with byte orders and interfaces of their own', () => {
    const file = [true, false, true].flatMap((little, i) => [
      ...section(little),
      ...face(little, i + 1, i === 1 ? option(little, 9, [3]) : []),
      ...enhanced(little, 0, 1000n, DATA, 15),
    ]);
    assert.deepEqual(
      framesOf(file).map(({ link, seconds, nanos }) => [link, seconds, nanos]),
      [
        [1, 0, 1_000_000],
        [2, 1, 0],
        [3, 0, 1_000_000],
      ],
    );
  });

  it('come back from what was written, in both formats', () => {
    const frame = fc.record({
      data: fc.array(fc.nat(255), { maxLength: 100 }),
      more: fc.nat(1000),
      seconds: fc.oneof(fc.nat(2_000_000_000), fc.constantFrom(2 ** 31, 2 ** 32 - 1, 65_535, 65_536)),
      nanos: fc.nat(999_999_999),
    });
    fc.assert(
      fc.property(fc.array(frame, { maxLength: 20 }), fc.constantFrom<CaptureKind>('pcap', 'pcapng'), (made, kind) => {
        const frames = made.map(({ data, more, seconds, nanos }) => ({
          data,
          seconds,
          nanos,
          wire: data.length + more,
          link: 1,
        }));
        assert.deepEqual(framesOf(written(kind, 1, frames), 50), frames);
      }),
    );
  });

  it('that are cut off at any byte, or damaged, are refused or end, and nothing else', () => {
    const whole = [...section(false), ...face(false, 1), ...enhanced(false, 0, 5n, DATA, 15)];
    for (const file of [whole, pcap(true, 0xa1b2c3d4, [{ seconds: 1, part: 1, data: DATA, wire: 15 }])]) {
      const headers = file === whole ? [section(false).length, section(false).length + 20] : [24];
      for (let length = 0; length < file.length; length++)
        if (!headers.includes(length)) throwsDma('EINVAL', () => framesOf(file.slice(0, length), 1000), /./);
      fc.assert(
        fc.property(fc.nat(file.length - 1), fc.nat(255), fc.integer({ min: 1, max: 100 }), (at, value, size) => {
          const damaged = file.with(at, value);
          try {
            for (const frame of framesOf(damaged, size)) assert.ok(frame.data.length <= file.length);
          } catch (error) {
            assert.ok(isDmaError(error, 'EINVAL'), String(error));
          }
        }),
        { numRuns: 1000 },
      );
    }
  });

  it('of no format that is known are refused, with what to do', () => {
    throwsDma('EINVAL', () => framesOf([0x1f, 0x8b, 8, 0, 0]), /gunzip/);
    throwsDma('EINVAL', () => framesOf([...Buffer.from('not a capture')]), /editcap/);
    throwsDma('EINVAL', () => framesOf([]), /too short/);
  });

  it('have the format that the name of the file says', () => {
    assert.deepEqual(['a.pcap', 'a.CAP', 'a.pcapng', 'a', 'a.pcap.txt'].map(captureKindOf), [
      'pcap',
      'pcap',
      'pcapng',
      'pcapng',
      'pcapng',
    ]);
  });
});
