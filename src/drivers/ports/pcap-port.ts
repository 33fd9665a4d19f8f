/** A port whose cable is two files: it receives the frames of one capture, and writes what is sent to another. */
import { CaptureSource, CaptureTarget } from './capture-files.js';
import { writePacket } from '../../net/capture/packet-writer.js';
import { LINK_ETHERNET, type CaptureFrame } from '../../net/capture/capture-frame.js';
import { DmaError, invalid, isDmaError } from '../../errors.js';
import { checkBurst } from '../../memory/pool/element-stack.js';
import { COUNT } from '../../net/port-base.js';
import { NONE, type Packets } from '../../net/packets.js';
import { OFFLOAD } from '../../net/offloads.js';
import { SoftwarePort } from './software-port.js';

/** The files of a port. */
export interface PcapFiles {
  /** The capture that it receives: a file or a pipe. Absent: it receives nothing. */
  readonly rx?: string;
  /** Where frames that are sent are written: `.pcap` in that format, else pcapng. Replaced if it is there. Absent: nowhere. */
  readonly tx?: string;
  /** The LINKTYPE of all frames. Default 1, Ethernet. */
  readonly link?: number;
}

/** `vdev:pcap0,rx=FILE,tx=FILE`. */
export class PcapPort extends SoftwarePort {
  readonly #link: number;
  readonly #source: CaptureSource | undefined;
  readonly #target: CaptureTarget | undefined;
  /** A frame that there was no packet for. */
  #waiting: CaptureFrame | undefined;

  /** @throws DmaError ENOENT, EACCES ... for a file that can not be opened; EINVAL if what is written is a capture already, of this port or another */
  constructor(name: string, number: number, { rx, tx, link = LINK_ETHERNET }: PcapFiles) {
    super(name, number);
    this.#link = link;
    this.#source = rx === undefined ? undefined : new CaptureSource(rx);
    try {
      this.#target = tx === undefined ? undefined : new CaptureTarget(tx, link);
    } catch (error) {
      this.#source?.close();
      throw error;
    }
  }

  override get ended(): boolean {
    return super.ended || (this.#waiting === undefined && (this.#source?.ended ?? true));
  }

  protected get hasPackets(): boolean {
    return this.#waiting !== undefined || this.#source?.isReady === true;
  }

  protected begin(): void {
    // Its files are open already.
  }

  protected async finish(): Promise<void> {
    this.bell.ring();
    try {
      await this.#target?.flush();
    } catch (error) {
      throw this.#failed(error);
    }
  }

  close(): void {
    this.#source?.close();
    this.#target?.close();
    this.endEvents();
  }

  /** @throws DmaError EINVAL if the capture is damaged, or has frames of another kind; as read(2): the port is lost then */
  rx(queue: number, burst: Int32Array, count = burst.length): number {
    const { config, counters } = this;
    const source = this.#source;
    if (config === undefined || source === undefined || this.lost !== undefined || !(queue < config.rxQueues)) return 0;
    checkBurst(burst, count, 0);
    const { packets } = config;
    let taken = 0;
    let bytes = 0;
    try {
      for (; taken < count; taken++) {
        const frame = this.#waiting ?? source.next();
        if (frame === undefined) break;
        if (frame.link !== this.#link) throw this.#otherLink(frame.link, source.path);
        const packet = packets.from(frame.data);
        if (packet === NONE) {
          if (frame.data.length > packets.pool.elements * packets.room) throw this.#tooLong(frame, packets);
          // The bytes of a frame are only there until the next call.
          this.#waiting = frame === this.#waiting ? frame : { ...frame, data: frame.data.slice() };
          counters[COUNT.RX_NO_BUFFERS] = (counters[COUNT.RX_NO_BUFFERS] ?? 0) + 1;
          break;
        }
        this.#waiting = undefined;
        packets.seconds[packet] = frame.seconds;
        packets.nanos[packet] = frame.nanos;
        packets.wire[packet] = frame.wire;
        packets.flags[packet] = OFFLOAD.RX_TIMESTAMP | (frame.wire === frame.data.length ? 0 : OFFLOAD.RX_CUT);
        bytes += frame.data.length;
        burst[taken] = packet;
      }
    } catch (error) {
      // Those before it are good; the error is told when there are none.
      if (taken === 0 || !isDmaError(error)) throw this.#failed(error);
      source.fail(error);
    }
    counters[COUNT.RX_PACKETS] = (counters[COUNT.RX_PACKETS] ?? 0) + taken;
    counters[COUNT.RX_BYTES] = (counters[COUNT.RX_BYTES] ?? 0) + bytes;
    return taken;
  }

  /** @throws DmaError as write(2), such as ENOSPC: the port is lost then, and the packets stay the caller's */
  tx(queue: number, burst: Int32Array, count = burst.length): number {
    const { config, counters } = this;
    if (config === undefined || this.lost !== undefined || !(queue < config.txQueues)) return 0;
    const { packets } = config;
    packets.mustBeBurst(burst, count);
    const target = this.#target;
    let bytes = 0;
    let sent = 0;
    try {
      for (; sent < count; sent++) {
        const packet = burst[sent] ?? NONE;
        if (target !== undefined) {
          if (!target.hasRoom) break;
          writePacket(target.writer, packets, packet);
        }
        bytes += packets.total[packet] ?? 0;
      }
    } catch (error) {
      throw this.#failed(error);
    }
    packets.release(burst, sent);
    counters[COUNT.TX_PACKETS] = (counters[COUNT.TX_PACKETS] ?? 0) + sent;
    counters[COUNT.TX_BYTES] = (counters[COUNT.TX_BYTES] ?? 0) + bytes;
    return sent;
  }

  #failed(error: unknown): unknown {
    if (isDmaError(error)) this.lose(error);
    return error;
  }

  #tooLong({ data }: CaptureFrame, { pool, room }: Packets): DmaError {
    const all = pool.elements * room;
    return new DmaError({
      code: 'ENOMEM',
      operation: 'port.rx',
      device: this.name,
      reason: `a frame of ${data.length} bytes is larger than the whole pool, which has room for ${all}`,
      hint: 'make a pool with more elements, or larger ones; "anydma forward" does by --total-num-mbufs and --mbuf-size',
    });
  }

  #otherLink(link: number, path: string): DmaError {
    return invalid('port.rx', `${path} has frames of LINKTYPE ${link}, not ${this.#link}`, {
      device: this.name,
      hint: `link=${link} in the name of the device takes and writes such frames; only modes that do not look into them suit`,
    });
  }
}
