/** The rings of the copy engine: descriptors for the device, and completions of it. Allocates nothing. */
import { mustBe, mustBeObject, reading } from '../check.js';
import { DmaError, invalid } from '../errors.js';
import type { RegisterStores } from '../platform/registers/registers.js';
import { Range } from '../ranges.js';
import { show } from '../show.js';
import { alignDown } from '../units.js';
import {
  COMPLETION,
  completionPhase,
  COPY_ENTRY,
  COPY_FLAG,
  COPY_REGISTER as REG,
  DESCRIPTOR,
} from '../vfio-user/devices/copy-engine-layout.js';
import { COPY_ABANDONED, ENGINE_WORD } from './copy-engine-state.js';

/** Memory of a ring, mapped for the device. */
export interface RingMemory {
  /** The memory; a multiple of 4 bytes into its ArrayBuffer. */
  readonly bytes: Uint8Array;
  /** The IOVA of the first byte; a multiple of 32. */
  readonly iova: number;
}

/**
 * The memory that the driver and the device share. The capacity is the largest power of two of 32-byte entries that
 * fits in both rings and that the device supports. The caller owns it, and keeps it mapped until the driver is closed.
 */
export interface CopyEngineRings {
  /** Descriptors; the device reads it. */
  readonly descriptors: RingMemory;
  /** Completions; the device writes it. */
  readonly completions: RingMemory;
}

/** What is told the completions of its own descriptors. */
export interface Submitter {
  /**
   * @param offset what was given to {@link CopyRing.put}
   * @param code `COPY_CODE`
   * @param bytes how many bytes were copied, as the device reports
   */
  completed(offset: number, code: number, bytes: number): void;
}

/** Both rings, with results for the completions of descriptors that have no submitter. */
export class CopyRing {
  /** Entries of each ring. */
  readonly capacity: number;

  // Results, entry by entry: see `CopyEngine`.
  readonly cookies: Uint32Array;
  readonly codes: Uint8Array;
  readonly bytes: Uint32Array;
  readonly faults: Float64Array;

  readonly #registers: RegisterStores;
  readonly #descriptorWords: Uint32Array;
  readonly #completionWords: Uint32Array;
  /** The submitter of each entry. */
  readonly #owners: (Submitter | undefined)[];
  readonly #offsets: Float64Array;
  /** Descriptors written, completions taken and descriptors announced, modulo 2^32. */
  #tail = 0;
  #head = 0;
  #rung = 0;
  /** Entries of the result arrays that were not fetched yet. */
  #found = 0;
  /** Where progress is told, while another thread is interested. */
  #told: Int32Array | undefined;

  constructor(registers: RegisterStores, rings: CopyEngineRings, capacity: number) {
    const words = ({ bytes }: RingMemory): Uint32Array =>
      new Uint32Array(bytes.buffer, bytes.byteOffset, capacity * COPY_ENTRY.WORDS);
    this.capacity = capacity;
    this.cookies = new Uint32Array(capacity);
    this.codes = new Uint8Array(capacity);
    this.bytes = new Uint32Array(capacity);
    this.faults = new Float64Array(capacity);
    this.#registers = registers;
    this.#descriptorWords = words(rings.descriptors);
    this.#completionWords = words(rings.completions);
    this.#owners = new Array<Submitter | undefined>(capacity).fill(undefined);
    this.#offsets = new Float64Array(capacity);
  }

  /** Descriptors written, modulo 2^32. */
  get tail(): number {
    return this.#tail;
  }

  /** @internal Where it is, for another process that continues with it. */
  get place(): { readonly tail: number; readonly head: number; readonly rung: number } {
    return { tail: this.#tail, head: this.#head, rung: this.#rung };
  }

  /** @internal Continues where another process was. Only in a new ring. */
  takeOver({ tail, head, rung }: CopyRing['place']): void {
    this.#tail = tail;
    this.#head = head;
    this.#rung = rung;
  }

  /** Is no descriptor outstanding? */
  get isEmpty(): boolean {
    return this.#head === this.#tail;
  }

  /** Are there descriptors that were not announced? */
  get isBehind(): boolean {
    return this.#rung !== this.#tail;
  }

  /**
   * Writes a descriptor; the device sees it at the next {@link ring}.
   *
   * @param owner is told its completion; `undefined`: it goes to the results
   * @returns its cookie; -1 if the ring or the results are full
   */
  put(
    source: number,
    destination: number,
    length: number,
    interrupt: boolean,
    owner: Submitter | undefined,
    offset: number,
  ): number {
    const tail = this.#tail;
    if (((tail - this.#head) >>> 0) + this.#found >= this.capacity) return -1;
    const slot = tail & (this.capacity - 1);
    const at = slot * COPY_ENTRY.WORDS;
    const cookie = tail & COOKIE_BITS;
    const words = this.#descriptorWords;
    words[at + DESCRIPTOR.SOURCE_LOW] = source;
    words[at + DESCRIPTOR.SOURCE_HIGH] = source / 4294967296;
    words[at + DESCRIPTOR.DESTINATION_LOW] = destination;
    words[at + DESCRIPTOR.DESTINATION_HIGH] = destination / 4294967296;
    words[at + DESCRIPTOR.LENGTH] = length;
    words[at + DESCRIPTOR.FLAGS] = interrupt ? COPY_FLAG.INTERRUPT : 0;
    words[at + DESCRIPTOR.COOKIE] = cookie;
    words[at + DESCRIPTOR.RESERVED] = 0;
    this.#owners[slot] = owner;
    this.#offsets[slot] = offset;
    this.#tail = (tail + 1) >>> 0;
    return cookie;
  }

  /** Announces new descriptors to the device: one register store, none if there are no new ones. */
  ring(): void {
    if (this.#rung === this.#tail) return;
    this.#rung = this.#tail;
    if (this.#told !== undefined) Atomics.store(this.#told, ENGINE_WORD.RUNG, this.#tail);
    // Stores to memory and registers leave the processor in program order on x86, and JavaScript engines keep that
    // order.
    this.#registers.write32(REG.PRODUCER, this.#tail);
  }

  /** How many entries of the results are filled since the last call. */
  takeFound(): number {
    const found = this.#found;
    this.#found = 0;
    return found;
  }

  /** Takes all new completions. Reads memory only. @returns how many */
  reap(): number {
    const words = this.#completionWords;
    const size = this.capacity;
    // Reads of released memory return undefined, which must not be taken for a completion.
    if (words.length === 0)
      throw new DmaError({ code: 'EBADF', operation: 'copyEngine', reason: 'the memory of its rings was released' });
    let head = this.#head;
    let taken = 0;
    for (; head !== this.#tail; taken++) {
      const slot = head & (size - 1);
      const at = slot * COPY_ENTRY.WORDS;
      const last = words[at + COMPLETION.CODE];
      if (last >>> 31 !== completionPhase(head, size)) break;
      head = (head + 1) >>> 0;
      this.#head = head;
      const owner = this.#owners[slot];
      if (owner === undefined) {
        const found = this.#found++;
        this.cookies[found] = words[at + COMPLETION.COOKIE];
        this.codes[found] = last;
        this.bytes[found] = words[at + COMPLETION.BYTES];
        this.faults[found] = words[at + COMPLETION.FAULT_HIGH] * 4294967296 + words[at + COMPLETION.FAULT_LOW];
      } else {
        this.#owners[slot] = undefined;
        owner.completed(this.#offsets[slot], last & 0xff, words[at + COMPLETION.BYTES]);
      }
    }
    if (this.#told !== undefined && taken > 0) Atomics.store(this.#told, ENGINE_WORD.HEAD, head);
    return taken;
  }

  /** Has the program fetched all that was found? */
  get isFetched(): boolean {
    return this.#found === 0;
  }

  /** Stores where it is, for another thread, which goes on there. */
  save(words: Int32Array): void {
    Atomics.store(words, ENGINE_WORD.TAIL, this.#tail);
    Atomics.store(words, ENGINE_WORD.RUNG, this.#rung);
    Atomics.store(words, ENGINE_WORD.HEAD, this.#head);
  }

  /** Goes on where another thread stopped. @param tells does it tell of its progress in `words`? */
  load(words: Int32Array, tells: boolean): void {
    this.#tail = Atomics.load(words, ENGINE_WORD.TAIL) >>> 0;
    this.#rung = Atomics.load(words, ENGINE_WORD.RUNG) >>> 0;
    this.#head = Atomics.load(words, ENGINE_WORD.HEAD) >>> 0;
    this.#told = tells ? words : undefined;
  }

  /**
   * The device was reset, after the thread that had it ended: what was running becomes a result with the code {@link COPY_ABANDONED},
   * and both rings begin anew.
   */
  restart(words: Int32Array): void {
    this.load(words, false);
    // What was not announced never ran.
    this.#tail = this.#rung;
    this.reap();
    for (; this.#head !== this.#tail; this.#head = (this.#head + 1) >>> 0) {
      const found = this.#found++;
      this.cookies[found] = this.#head & COOKIE_BITS;
      this.codes[found] = COPY_ABANDONED;
      this.bytes[found] = this.faults[found] = 0;
    }
    this.#tail = this.#head = this.#rung = 0;
    this.#completionWords.fill(0);
  }

  /**
   * The first copy between `head` and `rung` whose source or destination has a byte of the range [start, end) of VAs.
   *
   * @param vaOf the VA of an IOVA
   */
  usesOf(
    words: Int32Array,
    start: number,
    end: number,
    vaOf: (iova: number) => number | undefined,
  ): string | undefined {
    const rung = Atomics.load(words, ENGINE_WORD.RUNG) >>> 0;
    let head = Atomics.load(words, ENGINE_WORD.HEAD) >>> 0;
    for (let count = 0; head !== rung && count < this.capacity; count++, head = (head + 1) >>> 0) {
      const slot = head & (this.capacity - 1);
      const at = slot * COPY_ENTRY.WORDS;
      // It has completed, and was not taken yet.
      if (this.#completionWords[at + COMPLETION.CODE] >>> 31 === completionPhase(head, this.capacity)) continue;
      const descriptor = this.#descriptorWords;
      const length = descriptor[at + DESCRIPTOR.LENGTH];
      for (const low of [DESCRIPTOR.SOURCE_LOW, DESCRIPTOR.DESTINATION_LOW]) {
        const va = vaOf(descriptor[at + low + 1] * 4294967296 + descriptor[at + low]);
        if (va !== undefined && va < end && va + length > start) return `a copy of ${length} bytes`;
      }
    }
    return undefined;
  }
}

/** Small integers only, so that V8 does not allocate cookies. */
const COOKIE_BITS = 0x3fff_ffff;

/** @throws DmaError EINVAL for what no descriptor can have; the device decides which addresses are valid */
export function mustBeCopy(source: number, destination: number, length: number, most: number): void {
  if (Number.isInteger(length) && length > 0 && length <= most && isWhole(source) && isWhole(destination)) return;
  throw invalid(
    'copyEngine.submit',
    `${show(length)} bytes from ${show(source)} to ${show(destination)}; the device takes 1 to ${most} bytes`,
  );
}

function isWhole(value: number): boolean {
  return Number.isInteger(value) && value >= 0;
}

/** Copies the rings of a caller, who may change the objects. @throws DmaError EINVAL */
export function ringsOf(given: CopyEngineRings, operation: string): CopyEngineRings {
  const ringOf = (ring: RingMemory): RingMemory => {
    mustBeObject(ring, 'rings', operation);
    const { bytes, iova } = ring;
    mustBe(bytes, Uint8Array, 'the memory of a ring', operation);
    return { bytes, iova };
  };
  return reading(operation, 'the rings', () => {
    mustBeObject(given, 'rings', operation);
    return { descriptors: ringOf(given.descriptors), completions: ringOf(given.completions) };
  });
}

/** How many entries fit in both rings, at most `max`; EINVAL for memory that can not be a ring. */
export function ringCapacity({ descriptors, completions }: CopyEngineRings, max: number, operation: string): number {
  for (const { bytes, iova } of [descriptors, completions]) {
    const range = new Range(iova, bytes.length, operation);
    if (iova % COPY_ENTRY.BYTES !== 0 || bytes.byteOffset % 4 !== 0)
      throw invalid(
        operation,
        `the IOVA of a ring must be a multiple of ${COPY_ENTRY.BYTES}, its address in the ArrayBuffer a multiple of 4`,
        {
          range,
        },
      );
    if (bytes.length < 2 * COPY_ENTRY.BYTES)
      throw invalid(operation, `a ring must have room for at least 2 entries of ${COPY_ENTRY.BYTES} bytes`, { range });
  }
  const bytes = Math.min(descriptors.bytes.length, completions.bytes.length);
  const entries = Math.min(alignDown(bytes, COPY_ENTRY.BYTES) / COPY_ENTRY.BYTES, max);
  return 2 ** Math.floor(Math.log2(entries));
}
