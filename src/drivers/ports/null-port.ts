/** A port that throws away what it gets, and receives frames of zeros if it is asked to: for measuring programs. */
import { COUNT } from '../../net/port-base.js';
import { NONE } from '../../net/packets.js';
import { SoftwarePort } from './software-port.js';

/** `vdev:null0`. */
export class NullPort extends SoftwarePort {
  readonly #size: number;

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

  protected begin(): void {
    // It has no queues.
  }

  protected finish(): void {
    this.bell.ring();
  }

  close(): void {
    this.endEvents();
  }

  rx(_queue: number, burst: Int32Array, count = burst.length): number {
    const { config } = this;
    const size = this.#size;
    if (config === undefined || size === 0) return 0;
    const { packets } = config;
    const { counters } = this;
    let taken = 0;
    if (size <= packets.room) {
      if (packets.take(burst, count)) taken = count;
      else while (taken < count && packets.take(burst, 1, taken)) taken++;
      for (let i = 0; i < taken; i++) {
        const packet = burst[i] ?? NONE;
        const start = packets.start(packet);
        packets.view(packet).fill(0, start, start + size);
        packets.length[packet] = size;
        packets.total[packet] = size;
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

  tx(_queue: number, burst: Int32Array, count = burst.length): number {
    const { config, counters } = this;
    if (config === undefined) return 0;
    const { packets } = config;
    let bytes = 0;
    for (let i = 0; i < count; i++) bytes += packets.total[burst[i] ?? NONE] ?? 0;
    packets.release(burst, count);
    counters[COUNT.TX_PACKETS] = (counters[COUNT.TX_PACKETS] ?? 0) + count;
    counters[COUNT.TX_BYTES] = (counters[COUNT.TX_BYTES] ?? 0) + bytes;
    return count;
  }
}
