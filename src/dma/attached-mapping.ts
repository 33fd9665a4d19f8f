/** A mapping of another thread, as `attach` gives it: where a device finds memory, and with which keys. */
import { invalid } from '../errors.js';
import type { IovaRun } from '../memory/area.js';
import type { Hold } from '../memory/shared/hold.js';
import type { SharedFacts } from '../memory/shared/shared.js';
import { shortForm } from '../short-form.js';
import { show } from '../show.js';
import { hex, isAddress, type Iova, type Va, type VaLike } from '../units.js';
import type { DmaAccess } from './address-space.js';
import { STAYS } from '../stays.js';

/** What a description says of a mapping. */
export interface MappingFacts {
  readonly device: string;
  readonly va: Va;
  /** bytes */
  readonly length: number;
  readonly access: DmaAccess;
  readonly segments: readonly IovaRun[];
  readonly lkey?: number;
  readonly rkey?: number;
}

/** What others are told of a mapping, which has all of that. */
export function factsOf({ device, va, length, access, segments, lkey, rkey }: MappingFacts): MappingFacts {
  return { device, va, length, access, segments, lkey, rkey };
}

/** The name of a mapping in messages. */
export function nameOf({ device, va, length }: Pick<MappingFacts, 'device' | 'va' | 'length'>): string {
  return `the mapping [${hex(va)}, ${hex(va + length)}) for ${device}`;
}

/**
 * A mapping that another thread has made and shares. Made by `attach`. While it is attached, it is not unmapped (EBUSY), and its memory is not
 * freed. Disposing it lets go of it.
 */
export class AttachedMapping implements Disposable {
  /** @internal */
  readonly stays = STAYS;
  readonly device: string;
  /** Address of the first byte. */
  readonly va: Va;
  /** bytes */
  readonly length: number;
  /** What the device may do with the memory. */
  readonly access: DmaAccess;
  readonly #facts: MappingFacts;
  readonly #hold: Hold;

  /** @internal made by `attach` */
  constructor(facts: MappingFacts, hold: Hold) {
    this.device = facts.device;
    this.va = facts.va;
    this.length = facts.length;
    this.access = facts.access;
    this.#facts = facts;
    this.#hold = hold;
  }

  /** Is it mapped, and attached? False once its device was lost, or the thread that made it has ended. */
  get live(): boolean {
    return this.#hold.live;
  }

  /** The device's address of the first byte: see `Mapping.iova`. @throws DmaError EINVAL after letting go; ENODEV once it is lost */
  get iova(): Iova {
    this.#mustBeThere('iova');
    return this.#facts.segments[0].iova;
  }

  /** Local key of the memory region, for devices with keys (verbs); else `undefined`. @throws DmaError as {@link AttachedMapping.iova} */
  get lkey(): number | undefined {
    this.#mustBeThere('lkey');
    return this.#facts.lkey;
  }

  /** Remote key of the memory region, for devices with keys (verbs); else `undefined`. @throws DmaError as {@link AttachedMapping.iova} */
  get rkey(): number | undefined {
    this.#mustBeThere('rkey');
    return this.#facts.rkey;
  }

  /** What is mapped, in VA order: one run, unless the memory is not contiguous for the device. */
  get segments(): readonly IovaRun[] {
    return this.#facts.segments;
  }

  /** The device's address of the byte at `va`. @throws DmaError EINVAL if the mapping does not have that byte; as {@link AttachedMapping.iova} */
  iovaOf(va: VaLike): Iova {
    this.#mustBeThere('iovaOf');
    if (isAddress(va)) {
      const { segments } = this.#facts;
      let low = 0;
      for (let high = segments.length; low < high;) {
        const middle = (low + high) >>> 1;
        if (segments[middle].va <= va) low = middle + 1;
        else high = middle;
      }
      const run = low === 0 ? undefined : segments[low - 1];
      if (run !== undefined && va < run.va + run.length) return (run.iova + (va - run.va)) as Iova;
    }
    throw invalid('iovaOf', `${isAddress(va) ? hex(va) : show(va)} is not in ${nameOf(this)}`);
  }

  /** Lets go of it, so that it can be unmapped. Idempotent. */
  [Symbol.dispose](): void {
    this.#hold.leave();
  }

  #mustBeThere(operation: string): void {
    this.#hold.mustBeThere(operation, nameOf(this));
  }
}

shortForm(AttachedMapping, 'AttachedMapping', ({ device, va, length, access, live }) => ({
  device,
  va: hex(va),
  length,
  access,
  live,
}));

/** Reads what a description says of a mapping. It is sealed, so only its form can be wrong. @throws DmaError EINVAL */
export function mappingFacts(facts: SharedFacts, operation: string): MappingFacts {
  const { device, va, length, segments } = facts;
  const isWhole = typeof device === 'string' && typeof va === 'number' && typeof length === 'number';
  if (!isWhole || !Array.isArray(segments) || segments.length === 0)
    throw invalid(operation, 'the description says nothing of a mapping');
  return facts as SharedFacts & MappingFacts;
}
