/** A port without anything behind it: the test puts in what it receives, and says how much it takes. */
import { DmaError } from '../../../src/errors.js';
import { PortBase } from '../../../src/net/port-base.js';
import type { Link, PortLimits } from '../../../src/net/port.js';

/** The port. */
export class FakePort extends PortBase {
  readonly limits: PortLimits = {
    rxQueues: 1,
    txQueues: 1,
    descriptors: { least: 8, most: 1024, multiple: 8 },
    maxFrame: 9014,
    segments: 8,
    offloads: 3,
  };
  readonly mac: string;
  readonly link: Link = { up: true, speed: 1000, fullDuplex: true };
  promiscuous = false;
  /** What `rx` gives next: frames. */
  readonly incoming: Uint8Array[] = [];
  /** What was sent. */
  readonly sent: Uint8Array[] = [];
  /** How many packets `tx` takes, all together. */
  room = Infinity;
  /** Does it tell that nothing more comes once `incoming` is empty? */
  ends = true;
  /** What `tx` throws. */
  fails: DmaError | undefined;

  constructor(name: string, mac = '02:00:00:00:01:00') {
    super(name);
    this.mac = mac;
  }

  override get ended(): boolean {
    return super.ended || (this.ends && this.incoming.length === 0);
  }

  protected begin(): void {
    // There are no queues.
  }

  protected finish(): void {
    // There are no queues.
  }

  /** The device goes away. */
  unplug(): void {
    this.lose(new DmaError({ code: 'ENODEV', operation: 'port', reason: 'it was unplugged', device: this.name }));
  }

  rx(_queue: number, burst: Int32Array, count = burst.length): number {
    if (this.config === undefined || this.lost !== undefined) return 0;
    let taken = 0;
    for (; taken < count; taken++) {
      const frame = this.incoming.shift();
      if (frame === undefined) break;
      burst[taken] = this.config.packets.from(frame);
    }
    return taken;
  }

  tx(_queue: number, burst: Int32Array, count = burst.length): number {
    if (this.fails !== undefined) throw this.fails;
    if (this.config === undefined || this.lost !== undefined) return 0;
    const { packets } = this.config;
    const taken = Math.min(count, this.room);
    this.room -= taken;
    for (const packet of burst.subarray(0, taken)) this.sent.push(packets.copy(packet));
    packets.release(burst, taken);
    return taken;
  }

  async readable(
    _queue: number,
    { signal, timeoutMs = 10 }: { readonly signal?: AbortSignal; readonly timeoutMs?: number } = {},
  ): Promise<void> {
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, Math.min(timeoutMs, 5));
      signal?.addEventListener('abort', () => {
        clearTimeout(timer);
        resolve();
      });
    });
  }
}
