/** The features of a controller: settings of the host (NVM Express Base Specification 1.4, section 5.21). */
import { EVENT_CONFIG, FEATURE } from '../../../nvme/commands.js';
import { TEMPERATURE } from './health.js';

/** A feature that is one word. */
export interface Feature {
  readonly initial: number;
  /** Bits that the host may set; 0: it can not be changed. */
  readonly mask: number;
}

/** Those that are one word. */
export const WORDS: ReadonlyMap<number, Feature> = new Map<number, Feature>([
  // A burst without a limit (7), as round robin has none.
  [FEATURE.ARBITRATION, { initial: 0x7, mask: 0xffffff07 }],
  [FEATURE.POWER, { initial: 0, mask: 0xff }],
  [FEATURE.ERROR_RECOVERY, { initial: 0, mask: 0x1ffff }],
  [FEATURE.WRITE_CACHE, { initial: 1, mask: 1 }],
  [FEATURE.COALESCING, { initial: 0, mask: 0xffff }],
  [FEATURE.ATOMICITY, { initial: 0, mask: 1 }],
  [
    FEATURE.ASYNC_EVENTS,
    { initial: EVENT_CONFIG.NAMESPACES, mask: EVENT_CONFIG.HEALTH_MASK | EVENT_CONFIG.NAMESPACES },
  ],
]);

/** The settings; resets bring them back to their first values. */
export class Features {
  readonly #words = new Map<number, number>();
  /** Kelvins: an event is told at or above, and at or below. */
  over: number = TEMPERATURE.WARNING;
  under = 0;
  /** I/O queues that the host has asked for; `undefined` until it has. */
  queues: number | undefined;
  /** Vectors whose interrupts are not coalesced: bit 16 of the word that the host has set. */
  readonly #vectors = new Map<number, number>();
  timestamp = new Uint8Array(8);
  #timestampSet = 0;
  hostIdentifier = new Uint8Array(16);

  reset(): void {
    this.#words.clear();
    this.#vectors.clear();
    this.over = TEMPERATURE.WARNING;
    this.under = 0;
    this.queues = undefined;
  }

  get writeCache(): boolean {
    return this.word(FEATURE.WRITE_CACHE) === 1;
  }

  /** Events that the host wants, {@link EVENT_CONFIG}. */
  get events(): number {
    return this.word(FEATURE.ASYNC_EVENTS);
  }

  word(feature: number): number {
    return this.#words.get(feature) ?? WORDS.get(feature)?.initial ?? 0;
  }

  setWord(feature: number, value: number): void {
    this.#words.set(feature, value);
  }

  vector(vector: number): number {
    return vector | (this.#vectors.get(vector) ?? 0);
  }

  /** How interrupts of a vector are coalesced: after so many completions, or so many times 100 microseconds; 0: at once. */
  coalescing(vector: number): { readonly least: number; readonly time: number } {
    const word = this.word(FEATURE.COALESCING);
    const isOff = (this.#vectors.get(vector) ?? 0) !== 0;
    return { least: (word & 0xff) + 1, time: isOff ? 0 : word >>> 8 };
  }

  setVector(vector: number, word: number): void {
    this.#vectors.set(vector, word & (1 << 16));
  }

  /** Milliseconds since 1970, as the host has set it, and counted on. */
  timestampNow(now: number): Uint8Array {
    const bytes = this.timestamp.slice();
    const view = new DataView(bytes.buffer);
    const value = view.getUint16(4, true) * 2 ** 32 + view.getUint32(0, true) + Math.floor(now - this.#timestampSet);
    view.setUint32(0, value % 2 ** 32, true);
    view.setUint16(4, value / 2 ** 32, true);
    // Bit 1 of byte 6: the origin is the host.
    bytes[6] = this.#timestampSet === 0 ? 0 : 2;
    bytes[7] = 0;
    return bytes;
  }

  setTimestamp(bytes: Uint8Array, now: number): void {
    this.timestamp.set(bytes.subarray(0, 6));
    this.#timestampSet = now;
  }
}
