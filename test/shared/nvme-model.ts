/** Random commands for a namespace, and a model of its content: every byte that comes back is compared with the model. */
import assert from 'node:assert/strict';
import type { NvmeNamespace } from '../../src/entry/nvme.js';
import type { Block, Eal } from '../../src/index.js';
import { Random } from './random.js';

/** How much, from which seed. */
export interface ModelOptions {
  readonly seed: number;
  /** Commands in all. Those that a model needs besides, such as the reads after a deallocation, do not count. */
  readonly commands: number;
  /** Blocks of the namespace that are used, from its first on. Their content is lost. */
  readonly span: number;
  /** Commands that run at once, each on blocks of its own. Default 16. */
  readonly depth?: number;
  /** Most blocks of a command. Default 64. */
  readonly most?: number;
  /**
   * What deallocated blocks read as. `kept` allows a controller to keep their content, as QEMU's does, but it may not change any
   * more. Default `zeroes`.
   */
  readonly deallocated?: 'zeroes' | 'kept';
  /** Called now and then. */
  readonly onProgress?: (counts: ModelCounts) => void;
}

/** Commands that were sent, by kind. `rejected` are comparisons that had to fail. */
export interface ModelCounts {
  read: number;
  write: number;
  zeroes: number;
  deallocate: number;
  compare: number;
  rejected: number;
}

/** What commands do, as often as it is here. */
const KINDS = ['write', 'write', 'write', 'read', 'read', 'read', 'zeroes', 'deallocate', 'compare'] as const;
/** Commands between two calls of `onProgress`. */
const STEP = 10_000;
/** Bytes that content is cut from, at any place. */
const CONTENT = 1 << 20;

/**
 * Sends random commands (read, write, write zeroes, deallocate, compare), `depth` at a time, from and to memory at random offsets.
 * Each byte that is read is compared with the model at once, and the whole span at the end.
 *
 * @throws AssertionError naming the seed and the blocks
 */
export async function againstModel(eal: Eal, disk: NvmeNamespace, options: ModelOptions): Promise<ModelCounts> {
  const { seed, commands, span, depth = 16, deallocated = 'zeroes', onProgress } = options;
  const random = new Random(seed);
  const unit = disk.blockSize;
  const share = Math.floor(span / depth);
  const most = Math.min(options.most ?? 64, share);
  const model = Buffer.alloc(span * unit);
  const content = Buffer.from(random.bytes(CONTENT + most * unit));
  const zeroes = Buffer.alloc(unit);
  const counts: ModelCounts = { read: 0, write: 0, zeroes: 0, deallocate: 0, compare: 0, rejected: 0 };
  await disk.writeZeroes({ lba: 0, blocks: span });

  /** Reads blocks and compares them with the model. */
  const check = async (lba: number, memory: Block | { va: Block['va']; length: number }, bytes: Uint8Array) => {
    const place = model.subarray(lba * unit, lba * unit + bytes.length);
    // What is not written by the controller is seen.
    bytes.fill(0xee);
    await disk.read({ lba, blocks: bytes.length / unit, into: memory });
    if (Buffer.compare(place, bytes) === 0) return;
    const at = place.findIndex((byte, i) => byte !== bytes[i]);
    const where = `byte ${at % unit} of block ${lba + Math.floor(at / unit)}`;
    assert.fail(`seed ${seed}: ${where} is ${bytes[at]} and not ${place[at]} after ${JSON.stringify(counts)}`);
  };

  /** Takes what deallocated blocks read as into the model, if they are allowed to read so. */
  const learn = async (lba: number, memory: { va: Block['va']; length: number }, bytes: Uint8Array) => {
    bytes.fill(0xee);
    await disk.read({ lba, blocks: bytes.length / unit, into: memory });
    for (let at = 0; at < bytes.length; at += unit) {
      const block = bytes.subarray(at, at + unit);
      const place = model.subarray(lba * unit + at, lba * unit + at + unit);
      if (zeroes.equals(block)) place.fill(0);
      else if (Buffer.compare(block, place) !== 0)
        assert.fail(`seed ${seed}: block ${lba + at / unit} was deallocated, and is neither zero nor as it was`);
    }
  };

  let left = commands;
  /** One of those that run at once: it has blocks of its own, so that it knows the order of their commands. */
  const work = async (lane: number): Promise<void> => {
    const block = eal.malloc((most + 1) * unit + 4096, { align: 4096 });
    try {
      while (left > 0) {
        left--;
        if (left % STEP === 0) onProgress?.(counts);
        const blocks = 1 + random.below(most);
        const lba = lane * share + random.below(share - blocks + 1);
        const offset = 4 * random.below((unit + 4096) / 4);
        const length = blocks * unit;
        const memory = { va: (block.va + offset) as typeof block.va, length };
        const bytes = block.bytes(offset, length);
        const place = model.subarray(lba * unit, lba * unit + length);
        switch (random.pick(KINDS)) {
          case 'write': {
            const from = random.below(CONTENT);
            bytes.set(content.subarray(from, from + length));
            await disk.write({ lba, blocks, from: memory, fua: random.oneIn(8) });
            place.set(bytes);
            counts.write++;
            break;
          }
          case 'read':
            await check(lba, memory, bytes);
            counts.read++;
            break;
          case 'zeroes':
            await disk.writeZeroes({ lba, blocks, deallocate: random.oneIn(2) });
            place.fill(0);
            counts.zeroes++;
            break;
          case 'deallocate':
            await disk.deallocate([{ lba, blocks }]);
            if (deallocated === 'zeroes') place.fill(0);
            else await learn(lba, memory, bytes);
            counts.deallocate++;
            break;
          default:
            bytes.set(place);
            if (random.oneIn(2)) {
              await disk.compare({ lba, blocks, to: memory });
              counts.compare++;
            } else {
              bytes[random.below(length)] ^= 1 << random.below(8);
              await assert.rejects(disk.compare({ lba, blocks, to: memory }), { code: 'EBADE' });
              counts.rejected++;
            }
        }
      }
    } finally {
      block.free();
    }
  };
  await Promise.all(Array.from({ length: depth }, (_, lane) => work(lane)));

  using all = eal.malloc(1024 * 1024, { align: 4096 });
  const step = Math.floor(all.length / unit);
  for (let lba = 0; lba < span; lba += step) {
    const length = Math.min(step, span - lba) * unit;
    await check(lba, { va: all.va, length }, all.bytes(0, length));
  }
  return counts;
}
