/**
 * The ledger of what is mapped in one domain. Only bookkeeping: the rules are in domain.ts.
 *
 * Each entry is one mapping of the address space, found by VA and by IOVA in O(log n). Entries never overlap, in VA or
 * IOVA. The claims on an entry are its named references: the entry is removed with its last claim.
 */
import { AnyOf } from '../any-of.js';
import type { Area } from '../memory/area.js';
import type { Origin } from '../origin.js';
import { RangeMap } from '../range-map.js';
import { Range } from '../ranges.js';
import type { Iova, Va } from '../units.js';
import { LOCAL, type Backing, type DmaAccess, type MapKeys, type RegionTraits, type Segment } from './address-space.js';

/** One device's use of one range; implemented by `Mapping`. */
export interface Claim {
  /** name of the device */
  readonly device: string;
  /** The range that the caller asked for. */
  readonly range: Range<Va>;
  readonly access: DmaAccess;
  readonly region: RegionTraits;
  /** The entries behind it, in VA order; fewer after a part was cut out. */
  readonly entries: readonly Entry[];
  /** Is all of it still mapped, with nothing cut out? */
  readonly whole: boolean;
  /** Is any of it mapped? */
  readonly live: boolean;
  /** Where in the program it was made. */
  readonly origin: Origin | undefined;
}

/**
 * The states of an entry. Only `live` ones can be shared. `stuck`: unmapping failed, so its addresses stay reserved.
 */
export type EntryState = 'mapping' | 'live' | 'unmapping' | 'stuck';

/** The rights of a mapping. */
export interface Terms {
  readonly access: DmaAccess;
  readonly region: RegionTraits;
}

/** The terms of nearly all mappings: one shared object per access, instead of one per mapping. */
const USUAL: Readonly<Record<DmaAccess, Terms>> = {
  read: { access: 'read', region: LOCAL },
  write: { access: 'write', region: LOCAL },
  'read-write': { access: 'read-write', region: LOCAL },
};

export function termsOf(access: DmaAccess, region: RegionTraits): Terms {
  return region === LOCAL ? USUAL[access] : { access, region };
}

/** One segment that is mapped in the address space, or about to be. */
export class Entry implements Segment {
  readonly va: Va;
  readonly iova: Iova;
  readonly length: number;
  readonly area: Area;
  readonly #terms: Terms;
  /** Its user, or all of them if there are several. Nearly always one. */
  #users: Claim | AnyOf<Claim> | undefined;
  state: EntryState = 'mapping';
  keys: MapKeys | undefined;

  constructor(area: Area, va: Va, iova: Iova, length: number, access: DmaAccess, region: RegionTraits = LOCAL) {
    this.area = area;
    this.va = va;
    this.iova = iova;
    this.length = length;
    this.#terms = termsOf(access, region);
  }

  get access(): DmaAccess {
    return this.#terms.access;
  }

  get region(): RegionTraits {
    return this.#terms.region;
  }

  get backing(): Backing | undefined {
    return this.area.backingAt(this.va);
  }

  get vaRange(): Range<Va> {
    return new Range(this.va, this.length);
  }

  get iovaRange(): Range<Iova> {
    return new Range(this.iova, this.length);
  }

  /** The part [va, va + length) of this entry, as a new entry. */
  part(va: Va, length: number): Entry {
    const entry = new Entry(this.area, va, (this.iova + (va - this.va)) as Iova, length, this.access, this.region);
    entry.state = this.state;
    entry.keys = this.keys;
    return entry;
  }

  /** Devices that claim it, for messages. */
  get devices(): string[] {
    return [...new Set(Array.from(this.claims, (claim) => claim.device))];
  }

  /** The users, in the order they came. */
  get claims(): Iterable<Claim> {
    const users = this.#users;
    return users instanceof AnyOf ? users : users === undefined ? [] : [users];
  }

  /** Number of users. */
  get uses(): number {
    const users = this.#users;
    return users instanceof AnyOf ? users.size : users === undefined ? 0 : 1;
  }

  /** One of the users; the last one stays on the entry after it was removed. */
  get user(): Claim | undefined {
    const users = this.#users;
    return users instanceof AnyOf ? users.any : users;
  }

  /** Adds a user. */
  claim(claim: Claim): void {
    const users = this.#users;
    if (users === undefined) this.#users = claim;
    else if (users instanceof AnyOf) users.add(claim);
    else {
      const all = (this.#users = new AnyOf<Claim>());
      all.add(users);
      all.add(claim);
    }
  }

  /** Removes one of several users. */
  unclaim(claim: Claim): void {
    if (!(this.#users instanceof AnyOf)) return;
    this.#users.delete(claim);
    if (this.#users.size === 1) this.#users = this.#users.any;
  }
}

/** Entries by VA and by IOVA. */
export class Ledger {
  readonly #byVa = new RangeMap<Entry>();
  readonly #byIova = new RangeMap<Entry>();
  #bytes = 0;

  /** Number of entries: outstanding mappings. */
  get size(): number {
    return this.#byVa.size;
  }

  /** Bytes that all entries cover. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Adds an entry. @returns the conflicting entry, by VA or else by IOVA; then nothing was added */
  add(entry: Entry): Entry | undefined {
    const sameVa = this.#byVa.insert(entry.va, entry.length, entry);
    if (sameVa !== undefined) return sameVa;
    const sameIova = this.#byIova.insert(entry.iova, entry.length, entry);
    if (sameIova !== undefined) this.#byVa.delete(entry.va);
    else this.#bytes += entry.length;
    return sameIova;
  }

  /** Removes an entry that `add` added. */
  remove(entry: Entry): void {
    this.#byVa.delete(entry.va);
    this.#byIova.delete(entry.iova);
    this.#bytes -= entry.length;
  }

  clear(): void {
    this.#byVa.clear();
    this.#byIova.clear();
    this.#bytes = 0;
  }

  atVa(va: number): Entry | undefined {
    return this.#byVa.at(va);
  }

  atIova(iova: number): Entry | undefined {
    return this.#byIova.at(iova);
  }

  /** The first entry with a byte in [va, va + length). */
  overlappingVa(va: number, length: number): Entry | undefined {
    return this.#byVa.overlapping(va, va + length);
  }

  /** The first entry with a byte in [iova, iova + length). */
  overlappingIova(iova: number, length: number): Entry | undefined {
    return this.#byIova.overlapping(iova, iova + length);
  }

  /** The entry whose IOVAs begin at or before `iova`, and the next one: an address near them may belong to either. */
  besideIova(iova: number): { below: Entry | undefined; above: Entry | undefined } {
    return { below: this.#byIova.floor(iova), above: this.#byIova.above(iova) };
  }

  /** All entries in VA order. */
  [Symbol.iterator](): IterableIterator<Entry> {
    return this.#byVa.values();
  }
}
