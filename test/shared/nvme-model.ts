/** Random commands for a namespace, and what it has to hold then, byte by byte. */
import assert from 'node:assert/strict';
import type { Eal } from '../../src/index.js';
import type { NvmeNamespace } from '../../src/entry/nvme.js';

/** A sequence of numbers that a seed tells. */
export function dice(seed: number): (most: number) => number {
  let state = seed >>> 0 || 1;
  return (most) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % most;
  };
}

/**
 * Sends `commands` random commands (read, write, zeroes, deallocate, compare), `depth` at a time on blocks that do not overlap,
 * and compares every byte that comes back with a model of the disk.
 *
 * @param span blocks of the namespace that are used, from its first on
 */
export async function againstModel(
  eal: Eal,
  disk: NvmeNamespace,
  { seed, commands, depth = 16, span }: { seed: number; commands: number; depth?: number; span: number },
): Promise<void> {
  const roll = dice(seed);
  const unit = disk.blockSize;
  const share = Math.floor(span / depth);
  const most = Math.min(64, share);
  const model = Buffer.alloc(span * unit);
  await disk.writeZeroes({ lba: 0, blocks: span });
  let left = commands;
  /** One of those that run at once: it has blocks of its own, so that the order of commands is its own too. */
  const work = async (lane: number): Promise<void> => {
    const block = eal.malloc((most + 1) * unit, { align: 4096 });
    try {
      while (left > 0) {
        left--;
        const blocks = 1 + roll(most);
        const lba = lane * share + roll(share - blocks + 1);
        const offset = 4 * roll(unit / 4);
        const memory = { va: (block.va + offset) as typeof block.va, length: blocks * unit };
        const bytes = block.bytes(offset, blocks * unit);
        const place = model.subarray(lba * unit, (lba + blocks) * unit);
        const what = roll(10);
        if (what < 4) {
          for (let at = 0; at < bytes.length; at += 16) bytes.fill(roll(256), at, at + 16);
          await disk.write({ lba, blocks, from: memory, fua: roll(8) === 0 });
          place.set(bytes);
        } else if (what < 8) {
          bytes.fill(0xee);
          await disk.read({ lba, blocks, into: memory });
          assert.equal(Buffer.compare(place, bytes), 0, `seed ${seed}: blocks ${lba} to ${lba + blocks}`);
        } else if (what === 8) {
          await disk.writeZeroes({ lba, blocks, deallocate: roll(2) === 0 });
          place.fill(0);
        } else {
          bytes.set(place);
          await disk.compare({ lba, blocks, to: memory });
          bytes[roll(bytes.length)] ^= 0x10;
          await assert.rejects(disk.compare({ lba, blocks, to: memory }), { code: 'EBADE' });
        }
      }
    } finally {
      block.free();
    }
  };
  await Promise.all(Array.from({ length: depth }, (_, lane) => work(lane)));
  const all = eal.malloc(1024 * 1024, { align: 4096 });
  const step = all.length / unit;
  for (let lba = 0; lba < span; lba += step) {
    const blocks = Math.min(step, span - lba);
    await disk.read({ lba, blocks, into: all });
    assert.equal(Buffer.compare(model.subarray(lba * unit, (lba + blocks) * unit), all.bytes(0, blocks * unit)), 0);
  }
  all.free();
}
