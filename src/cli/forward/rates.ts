/** What ports do a second, as tables. */
import type { Port, PortStatistics } from '../../entry/net.js';

/** Bytes that a frame takes on the wire besides its own: check sum, preamble, gap (IEEE 802.3). */
const WIRE = 4 + 8 + 12;

/** The columns of {@link rateRow}. */
export const RATE_COLUMNS = [
  { head: 'port' },
  { head: 'received', align: 'right' },
  { head: 'Mpps', align: 'right' },
  { head: 'Gbit/s', align: 'right' },
  { head: 'sent', align: 'right' },
  { head: 'Mpps', align: 'right' },
  { head: 'Gbit/s', align: 'right' },
  { head: 'lost', align: 'right' },
] as const;

/** The row of a port: what `now` has more than `before`, over `seconds`. */
export function rateRow(name: string, now: PortStatistics, seconds: number, before?: PortStatistics): string[] {
  const more = (key: keyof PortStatistics): number => now[key] - (before?.[key] ?? 0);
  const mpps = (packets: number): string => (seconds > 0 ? (packets / seconds / 1e6).toFixed(3) : '-');
  const gbits = (packets: number, bytes: number): string =>
    seconds > 0 ? (((bytes + packets * WIRE) * 8) / seconds / 1e9).toFixed(3) : '-';
  return [
    name,
    String(now.rxPackets),
    mpps(more('rxPackets')),
    gbits(more('rxPackets'), more('rxBytes')),
    String(now.txPackets),
    mpps(more('txPackets')),
    gbits(more('txPackets'), more('txBytes')),
    String(now.rxMissed + now.rxErrors + now.txErrors),
  ];
}

/** The rates of ports since they were asked for the last time. */
export class Rates {
  readonly #ports: readonly Port[];
  #before: readonly PortStatistics[];
  #at = performance.now();

  constructor(ports: readonly Port[]) {
    this.#ports = ports;
    this.#before = ports.map((port) => port.statistics());
  }

  /** The rows of a table. */
  rows(): string[][] {
    const time = performance.now();
    const seconds = (time - this.#at) / 1000;
    const now = this.#ports.map((port) => port.statistics());
    const rows = this.#ports.map((port, i) =>
      rateRow(port.name, now[i] ?? port.statistics(), seconds, this.#before[i]),
    );
    this.#at = time;
    this.#before = now;
    return rows;
  }
}
