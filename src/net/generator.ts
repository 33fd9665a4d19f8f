/** Packets that the forwarder makes itself: UDP over IPv4, from the addresses for benchmarks (RFC 2544, appendix C.2.2), to the port `discard`. */
import { invalid } from '../errors.js';
import { checksum, sumOf } from './checksum.js';
import { ETHER_TYPE, ETHERNET, IPV4, PROTOCOL, putU16, UDP } from './frames.js';
import { NONE, type Packets } from './packets.js';
import { LEAST_FRAME } from './port-base.js';

const HEADERS = ETHERNET.BYTES + IPV4.BYTES + UDP.BYTES;
const FROM_IP = [198, 18, 0, 1];
const TO_IP = [198, 18, 0, 2];
const DISCARD = 9;

/** How its packets look. */
export interface GeneratorOptions {
  /** Bytes of each segment of a packet; their sum is the frame's length without its check sum. */
  readonly segments: readonly number[];
  /** Number of different destination addresses, one after another. */
  readonly flows: number;
  readonly from: Uint8Array;
  readonly to: Uint8Array;
}

/** Makes bursts of packets. */
export class Generator {
  readonly #packets: Packets;
  readonly #template: Uint8Array;
  readonly #segments: Int32Array;
  readonly #total: number;
  readonly #flows: number;
  #flow = 0;
  readonly #taken: Int32Array;

  /** @throws DmaError EINVAL for a length or segments that can not be */
  constructor(packets: Packets, { segments, flows, from, to }: GeneratorOptions) {
    const total = segments.reduce((sum, length) => sum + length, 0);
    const wrong = segments.find((length) => !Number.isInteger(length) || length < 1 || length > packets.room);
    if (wrong !== undefined || total < LEAST_FRAME || total > 65_535 || (segments[0] ?? 0) < HEADERS)
      throw invalid('forward', `packets of ${segments.join(' + ')} bytes can not be made`, {
        hint: `the first segment has at least ${HEADERS} bytes, each at most ${packets.room}, all together at least ${LEAST_FRAME}`,
      });
    this.#packets = packets;
    this.#segments = Int32Array.from(segments);
    this.#total = total;
    this.#flows = flows;
    this.#template = template(total, from, to).subarray(0, segments[0]);
    this.#taken = new Int32Array(segments.length);
  }

  /** Makes up to `count` packets. @returns how many: fewer if the pool is empty */
  make(burst: Int32Array, count: number): number {
    const packets = this.#packets;
    if (this.#segments.length > 1) return this.#makeChains(burst, count);
    let made = count;
    if (!packets.take(burst, count)) for (made = 0; made < count && packets.take(burst, 1, made);) made++;
    const total = this.#total;
    for (let i = 0; i < made; i++) {
      const packet = burst[i] ?? NONE;
      this.#fill(packet);
      packets.length[packet] = total;
      packets.total[packet] = total;
    }
    return made;
  }

  #makeChains(burst: Int32Array, count: number): number {
    const packets = this.#packets;
    const segments = this.#segments;
    const taken = this.#taken;
    for (let made = 0; made < count; made++) {
      if (!packets.take(taken, segments.length)) return made;
      const first = taken[0] ?? NONE;
      for (let i = 0; i < segments.length; i++) {
        const segment = taken[i] ?? NONE;
        const length = segments[i] ?? 0;
        const start = packets.start(segment);
        // Nothing of what was in the memory before is sent.
        if (i > 0) packets.view(segment).fill(0, start, start + length);
        packets.length[segment] = length;
        packets.next[segment] = taken[i + 1] ?? NONE;
      }
      packets.segments[first] = segments.length;
      packets.total[first] = this.#total;
      this.#fill(first);
      burst[made] = first;
    }
    return count;
  }

  #fill(packet: number): void {
    const bytes = this.#packets.view(packet);
    const at = this.#packets.start(packet);
    bytes.set(this.#template, at);
    if (this.#flows > 1) this.#nextFlow(bytes, at + ETHERNET.BYTES);
  }

  #nextFlow(bytes: Uint8Array, ip: number): void {
    const flow = this.#flow++;
    if (this.#flow === this.#flows) this.#flow = 0;
    bytes[ip + IPV4.TO + 2] = (flow >> 8) & 0xff;
    bytes[ip + IPV4.TO + 3] = flow & 0xff;
    putU16(bytes, ip + IPV4.SUM, 0);
    putU16(bytes, ip + IPV4.SUM, checksum(sumOf(bytes, ip, IPV4.BYTES)));
  }
}

function template(total: number, from: Uint8Array, to: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(total);
  bytes.set(to, ETHERNET.TO);
  bytes.set(from, ETHERNET.FROM);
  putU16(bytes, ETHERNET.TYPE, ETHER_TYPE.IPV4);
  const ip = ETHERNET.BYTES;
  bytes[ip] = 0x45;
  putU16(bytes, ip + IPV4.TOTAL, total - ETHERNET.BYTES);
  bytes[ip + IPV4.TTL] = 64;
  bytes[ip + IPV4.PROTOCOL] = PROTOCOL.UDP;
  bytes.set(FROM_IP, ip + IPV4.FROM);
  bytes.set(TO_IP, ip + IPV4.TO);
  putU16(bytes, ip + IPV4.SUM, checksum(sumOf(bytes, ip, IPV4.BYTES)));
  const udp = ip + IPV4.BYTES;
  putU16(bytes, udp + UDP.FROM, DISCARD);
  putU16(bytes, udp + UDP.TO, DISCARD);
  putU16(bytes, udp + UDP.LENGTH, total - ETHERNET.BYTES - IPV4.BYTES);
  return bytes;
}
