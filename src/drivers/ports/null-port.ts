/** A port that throws away what it gets, and receives frames of zeros if it is asked to: for measuring programs. */
import { COUNT, type CheckedConfig } from '../../net/port-base.js';
import { NONE, type Packets } from '../../net/packets.js';
import { SoftwarePort } from './software-port.js';

/** Up to so many bytes, storing zeros takes less time than a call of `fill`. */
const FEW = 256;

/** `vdev:null0`. */
export class NullPort extends SoftwarePort {
  readonly #size: number;
  /** The chunks of the pool as words of 8 bytes. */
  #words: readonly Float64Array[] = [];

  /** @param size bytes of the frames that it receives; 0: it receives none */
  constructor(name: string, number: number, size: number) {
    super(name, number);
    this.#size = size;
  }

  override get ended(): boolean {
    return this.#size === 0 || super.ended;
  }

  protected get hasPackets(): boolean {
    return this.#size > 0;
  }

  protected begin({ packets: { pool } }: CheckedConfig): void {
    this.#words = pool.chunks.map((_, chunk) => wordsIn(pool.chunkBytes(chunk)));
  }

  protected finish(): void {
    this.#words = [];
    this.bell.ring();
  }

  close(): void {
    this.endEvents();
  }

  rx(queue: number, burst: Int32Array, count = burst.length): number {
    const { config } = this;
    const size = this.#size;
    if (config === undefined || size === 0 || !(queue < config.rxQueues)) return 0;
    const { packets } = config;
    const { counters } = this;
    let taken = 0;
    if (size <= packets.room) {
      if (packets.take(burst, count)) taken = count;
      else while (taken < count && packets.take(burst, 1, taken)) taken++;
      const { length, total } = packets;
      const { chunkOf } = packets.pool;
      for (let i = 0; i < taken; i++) {
        const packet = burst[i];
        clear(packets, packet, size, this.#words[chunkOf[packet]]);
        length[packet] = size;
        total[packet] = size;
      }
    } else
      for (; taken < count; taken++) {
        const packet = packets.from(new Uint8Array(size));
        if (packet === NONE) break;
        burst[taken] = packet;
      }
    if (taken < count) counters[COUNT.RX_NO_BUFFERS] = (counters[COUNT.RX_NO_BUFFERS] ?? 0) + 1;
    counters[COUNT.RX_PACKETS] = (counters[COUNT.RX_PACKETS] ?? 0) + taken;
    counters[COUNT.RX_BYTES] = (counters[COUNT.RX_BYTES] ?? 0) + taken * size;
    return taken;
  }

  tx(queue: number, burst: Int32Array, count = burst.length): number {
    const { config, counters } = this;
    if (config === undefined || !(queue < config.txQueues)) return 0;
    const { packets } = config;
    packets.mustBeBurst(burst, count);
    let bytes = 0;
    const { total } = packets;
    for (let i = 0; i < count; i++) bytes += total[burst[i]];
    packets.release(burst, count);
    counters[COUNT.TX_PACKETS] = (counters[COUNT.TX_PACKETS] ?? 0) + count;
    counters[COUNT.TX_BYTES] = (counters[COUNT.TX_BYTES] ?? 0) + bytes;
    return count;
  }
}

/** Zeros in the first `size` bytes of a packet that was just taken. @param words of its chunk */
function clear(packets: Packets, packet: number, size: number, words: Float64Array): void {
  const start = packets.start(packet);
  if (size > FEW || ((start | size) & 7) !== 0 || words.length === 0) {
    packets.view(packet).fill(0, start, start + size);
    return;
  }
  const end = (start + size) >>> 3;
  for (let word = start >>> 3; word < end; word++) words[word] = 0;
}

/** The words of 8 bytes in `bytes`; none if they do not begin with a whole one. */
function wordsIn({ buffer, byteOffset, length }: Uint8Array): Float64Array {
  return byteOffset % 8 === 0 ? new Float64Array(buffer, byteOffset, length >>> 3) : new Float64Array(0);
}
