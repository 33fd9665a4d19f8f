/** Frames that a port sends to a cable whose other end echoes them: each is numbered, and has a sum over its bytes. */
import assert from 'node:assert/strict';
import { crc32 } from 'node:zlib';
import { macBytes, NONE, type Packets, type Port } from '../../src/entry/net.js';
import { Random } from '../shared/random.js';

/** Bytes of the frames. */
export const LEAST = 60;
export const MOST = 9014;

const PEER = [2, 0, 0, 0, 0, 9];
/** An EtherType for experiments. */
const TYPE = [0x88, 0xb5];
const NUMBER = 14;
const SUM = 18;
const HEADER = 22;
/** Frames that are under way at most: as many as the sockets on the way have room for, which throw away what they do not. */
const WINDOW = 10;
/** What frames are filled with, from a place that depends on their number. */
const NOISE = new Random(1041).bytes(1 << 16);
/** How long a frame may be on its way, in milliseconds: then it is lost. */
const LOST_MS = 30_000;

/** Makes `into` the frame of a number, from a station to the other end. */
function writeFrame(into: Uint8Array, number: number, own: Uint8Array): void {
  into.set([...PEER, ...own, ...TYPE]);
  const from = Math.imul(number, 7919) & 0x7fff;
  into.set(NOISE.subarray(from, from + into.length - HEADER), HEADER);
  const view = new DataView(into.buffer, into.byteOffset, into.length);
  view.setUint32(NUMBER, number);
  view.setUint32(SUM, crc32(into.subarray(HEADER)));
}

/** A frame of `length` bytes from a station. */
export function frameFrom(port: Port, length: number, number: number): Uint8Array {
  const frame = new Uint8Array(length);
  writeFrame(frame, number, macBytes(port.mac));
  return frame;
}

/** @returns the number of a frame that came back whole */
function numberOf(frame: Uint8Array, own: Uint8Array): number {
  assert.deepEqual([...frame.subarray(0, NUMBER)], [...own, ...PEER, ...TYPE]);
  const view = new DataView(frame.buffer, frame.byteOffset, frame.length);
  assert.equal(view.getUint32(SUM), crc32(frame.subarray(HEADER)), 'the frame was changed on its way');
  return view.getUint32(NUMBER);
}

/**
 * Sends `frames` of random lengths, and takes what comes back.
 *
 * @throws an AssertionError if one does not come, comes twice, or is not as it was
 */
export async function exchange(port: Port, packets: Packets, frames: number, seed: number): Promise<void> {
  const own = macBytes(port.mac);
  const random = new Random(seed);
  const lengths = new Uint16Array(frames);
  const back = new Uint8Array(frames);
  const scratch = new Uint8Array(MOST);
  const burst = new Int32Array(32);
  const waiting = new Int32Array(32);
  let [made, done, waits] = [0, 0, 0];
  let last = performance.now();
  while (done < frames) {
    while (waits < waiting.length && made < frames && made - done < WINDOW) {
      // Often the shortest, the longest, and what just fits an element.
      const length = random.oneIn(8)
        ? random.pick([LEAST, LEAST + 1, 2048, 2049, 2048 + 2060, 4096, MOST])
        : LEAST + random.below(MOST - LEAST + 1);
      const bytes = scratch.subarray(0, length);
      writeFrame(bytes, made, own);
      const packet = packets.from(bytes);
      if (packet === NONE) break;
      lengths[made++] = length;
      waiting[waits++] = packet;
    }
    const sent = port.tx(0, waiting, waits);
    waiting.copyWithin(0, sent, waits);
    waits -= sent;
    const came = port.rx(0, burst);
    for (const packet of burst.subarray(0, came)) {
      const frame = packets.copy(packet);
      const number = numberOf(frame, own);
      assert.equal(frame.length, lengths[number]);
      assert.equal(back[number]++, 0, `frame ${number} came twice`);
      done++;
    }
    packets.release(burst, came);
    if (came > 0) last = performance.now();
    else {
      assert.ok(
        performance.now() - last < LOST_MS,
        `${made - done} of ${made} frames have not come back: ${JSON.stringify(port.statistics())}`,
      );
      await port.readable(0, { timeoutMs: 20 });
    }
  }
  assert.equal(port.rx(0, burst), 0);
}
