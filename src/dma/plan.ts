/**
 * Plans a mapping: every check that is possible without side effects, in the same order for all kinds of domains: first
 * arguments, then existing mappings, then limits.
 */
import { mustBeNumber, reading, type Shape } from '../check.js';
import { DmaError, type ErrorCode } from '../errors.js';
import type { Area } from '../memory/area.js';
import type { AreaIndex } from '../memory/area-index.js';
import type { Origin } from '../origin.js';
import { Range } from '../ranges.js';
import { alignUp, formatSize, hex, isAddress, isPowerOfTwo, type Iova, type IovaLike, type Va } from '../units.js';
import {
  LOCAL,
  type DmaAccess,
  type Constraints,
  type Paging,
  type RegionTraits,
  type RemoteAccess,
} from './address-space.js';
import type { Claim, Entry, Ledger } from './ledger.js';
import { show } from '../show.js';
import type { LockedBudget } from './locked-budget.js';
import { mustBePart, type MemoryPart } from '../memory/part.js';

/** Options of a mapping. */
export interface MapOptions {
  /**
   * The address that the device must use. Default: from the area's own IOVA table, else the VA if the windows allow it,
   * else from the domain's allocator.
   */
  readonly iova?: IovaLike;
  /**
   * bytes, a power of two: the IOVA of the first byte is a multiple of it. For devices that need their rings or tables aligned. If
   * the IOVA can not be chosen (an IOVA table, devices that use VAs) it has to be a multiple already. Default: the domain's granule.
   */
  readonly iovaAlign?: number;
  /** What the device may do. Default `read-write`; `read` for memory that is not writable. */
  readonly access?: DmaAccess;
  /**
   * What peers over the network may do through the rkey; only for devices of verbs. Writing needs an `access` that
   * writes. Default `none`.
   */
  readonly remote?: RemoteAccess;
  /** `on-demand` if the device shall fault in pages itself; only for devices of verbs that can. Default `pinned`. */
  readonly paging?: Paging;
}

/** @internal */
export const MAP_OPTIONS: Shape<MapOptions> = {
  iova: 'number',
  iovaAlign: 'number',
  access: 'any',
  remote: 'any',
  paging: 'any',
};

/**
 * Reads the target of map or unmap once. @throws DmaError EINVAL if it is not a target, or its IOVA has another type
 */
export function targetOf(
  target: MemoryPart & { readonly iova?: IovaLike },
  operation: string,
): MemoryPart & { iova?: IovaLike } {
  mustBePart(target, operation);
  return reading(operation, 'the range', () => {
    const { va, length, iova } = target;
    if (iova !== undefined) mustBeNumber(iova, 'an IOVA', operation);
    return iova === undefined ? { va, length } : { va, length, iova };
  });
}

/** The state of a domain that planning needs. */
export interface Books {
  /** the domain's name, for messages */
  readonly name: string;
  readonly constraints: Constraints;
  /** The windows of the constraints, with adjacent ones joined. */
  readonly windows: readonly Range<Iova>[];
  readonly areas: AreaIndex;
  readonly ledger: Ledger;
  /** What may still be pinned; the only thing that planning takes from. */
  readonly locked: LockedBudget;
}

/** The request and its caller. */
export interface MapRequest {
  readonly device: string;
  readonly target: MemoryPart;
  readonly options: MapOptions;
  /** the caller's operation, for messages */
  readonly operation: string;
  readonly origin: Origin | undefined;
}

/** A piece of a planned mapping, contiguous for the device; `iova` is `undefined` if the domain chooses it. */
export interface PlannedPiece {
  readonly va: Va;
  readonly length: number;
  readonly iova: Iova | undefined;
}

/** A mapping that passed every check and had no effect yet. */
export interface Plan {
  readonly operation: string;
  readonly device: string;
  readonly range: Range<Va>;
  readonly area: Area;
  readonly access: DmaAccess;
  readonly region: RegionTraits;
  /** bytes; 1 if any IOVA will do */
  readonly iovaAlign: number;
  /** An identical mapping, if it exists: its entries are shared, and `pieces` are not needed. */
  readonly shared: Claim | undefined;
  /** Empty if {@link piecesOfTable} is to find and check them one after another: there may be one per page. */
  readonly pieces: readonly PlannedPiece[];
  readonly origin: Origin | undefined;
}

/** Pages of an IOVA table that are examined in a millisecond. */
const PAGES_AT_ONCE = 4096;

/**
 * Plans `request`.
 *
 * @param when `later`: leave out the pieces of memory with a large IOVA table, see {@link Plan.pieces}
 * @throws DmaError EINVAL, ENOTSUP, EACCES, ERANGE, EEXIST, EBUSY, ENOSPC, ENOMEM: see `Domain.mapFor`
 */
export function planMapping(books: Books, request: MapRequest, when: 'now' | 'later' = 'now'): Plan {
  const { device, operation, options, origin } = request;
  const { constraints } = books;
  const target = targetOf(request.target, operation);
  const range = new Range(target.va as Va, target.length, operation);
  const refuse = refusing({ operation, range, device });

  checkWords(options, refuse);
  if (!range.isAligned(constraints.granule))
    throw refuse('EINVAL', 'the range is not aligned', alignedHint(books, range));
  const region = regionOf(books, options, refuse);
  const area = books.areas.covering(range, operation);
  const access = options.access ?? (area.writable ? 'read-write' : 'read');
  checkRemote(access, region.remote, refuse);
  const iova = options.iova as Iova | undefined;
  const isLater =
    when === 'later' && iova === undefined && area.iovas !== undefined && range.length / area.pageSize > PAGES_AT_ONCE;
  const pieces = isLater ? [] : place(books, range, area, iova, refuse);
  checkAccess(area, access, region.remote, refuse);
  if (constraints.iova !== 'ignored') for (const piece of pieces) mustBeInWindows(books, piece, refuse, area);

  const planned = isLater ? area.iovaAt(range.start) : pieces[0].iova;
  const { iovaAlign = 1 } = options;
  if (planned !== undefined && planned % iovaAlign !== 0) throw notAligned(books, planned, iovaAlign, refuse);
  const wanted = iova ?? (constraints.iova === 'ignored' ? undefined : planned);
  const shared = findSame(books.ledger, range, { access, region, iova: wanted, iovaAlign }, refuse);
  // A device that joined later may reach fewer addresses than those before it.
  if (shared !== undefined && constraints.iova !== 'ignored')
    for (const entry of shared.entries) mustBeInWindows(books, entry, refuse);
  if (shared === undefined) {
    for (const piece of pieces) mustBeFree(books.ledger, piece, refuse);
    checkLimits(books, pieces.length, region.paging === 'pinned' ? range.length : 0, refuse);
  }
  return { operation, device, range, area, access, region, iovaAlign, shared, pieces, origin };
}

/**
 * The pieces of a plan that left them out, in VA order; `undefined` from time to time during a long search. The table
 * is checked here; call {@link checkPiece} before taking a piece.
 *
 * @throws DmaError EINVAL
 */
export function* piecesOfTable(books: Books, plan: Plan): Generator<PlannedPiece | undefined, void, undefined> {
  yield* tablePieces(books, plan.range, plan.area, refusing(plan));
}

/**
 * Checks that a piece can be taken now, of a plan that needs `left` more. @throws DmaError ERANGE, EEXIST, EBUSY,
 * ENOSPC
 */
export function checkPiece(books: Books, plan: Plan, piece: PlannedPiece, left: number): void {
  const refuse = refusing(plan);
  if (books.constraints.iova !== 'ignored') mustBeInWindows(books, piece, refuse, plan.area);
  const other = books.ledger.overlappingVa(piece.va, piece.length);
  if (other !== undefined) throw inTheWay(other, 'it overlaps', refuse);
  // Pieces of the same mapping have addresses from the same table; a conflict between them shows when the piece is
  // taken.
  const taken = piece.iova === undefined ? undefined : books.ledger.overlappingIova(piece.iova, piece.length);
  if (taken?.area !== plan.area || taken.state !== 'mapping') mustBeFree(books.ledger, piece, refuse);
  checkLimits(books, left, 0, refuse);
}

function refusing({ operation, range, device }: Pick<Plan, 'operation' | 'range' | 'device'>): Refuse {
  return (code, reason, hint) => new DmaError({ code, operation, range, device, reason, hint });
}

/** A hint for memory that a domain can map. */
function alignedHint({ constraints: { granule }, name, areas }: Books, { start, length }: Range<Va>): string {
  const fact = `${name} maps in units of ${formatSize(granule)}: start and length are multiples`;
  const area = areas.at(start);
  const isWhole = area?.range.start === start && area.range.length === length;
  if (!isWhole || area.owner !== 'external' || granule <= area.pageSize) return fact;
  return `${fact}, as external.allocate(${alignUp(length, granule)}, { align: ${granule} }) gives them`;
}

/**
 * Checks what needs no device: the values, that one area contains the whole target, and that it may be written if that
 * is asked for.
 *
 * @returns the area
 * @throws DmaError EINVAL, EACCES
 */
export function checkTarget(areas: AreaIndex, target: MemoryPart, options: MapOptions = {}, operation: string): Area {
  const range = new Range(target.va as Va, target.length, operation);
  const refuse: Refuse = (code, reason, hint) => new DmaError({ code, operation, range, reason, hint });
  checkWords(options, refuse);
  if (options.iova !== undefined) checkIova(options.iova as Iova, range, refuse);
  const area = areas.covering(range, operation);
  checkAccess(area, options.access ?? (area.writable ? 'read-write' : 'read'), options.remote, refuse);
  return area;
}

/** What a device may do with memory. */
export const ACCESSES: readonly DmaAccess[] = ['read', 'write', 'read-write'];
/** What peers may do with memory. */
export const REMOTES: readonly RemoteAccess[] = ['none', ...ACCESSES];
const PAGINGS: readonly Paging[] = ['pinned', 'on-demand'];

type Refuse = (code: ErrorCode, reason: string, hint?: string) => DmaError;

function mayWrite(remote: RemoteAccess): boolean {
  return remote === 'write' || remote === 'read-write';
}

/** @throws EINVAL for an unknown word */
function checkWords({ access, remote, paging, iovaAlign = 1 }: MapOptions, refuse: Refuse): void {
  const check = (what: string, value: string | undefined, words: readonly string[]): void => {
    if (value !== undefined && !words.includes(value))
      throw refuse('EINVAL', `there is no ${what} ${show(value)}`, `it is ${words.join(', ')}`);
  };
  check('access', access, ACCESSES);
  check('remote access', remote, REMOTES);
  check('paging', paging, PAGINGS);
  if (iovaAlign !== 1 && !(isAddress(iovaAlign) && isPowerOfTwo(iovaAlign)))
    throw refuse('EINVAL', `IOVAs can not be aligned to ${show(iovaAlign)} bytes`, 'iovaAlign is a power of two');
}

/** For an IOVA that was asked for, or can not be chosen. */
function notAligned(books: Books, iova: Iova, iovaAlign: number, refuse: Refuse): DmaError {
  const reason = `the IOVA ${hex(iova)} is not a multiple of ${hex(iovaAlign)}`;
  return takesVas(books)
    ? refuse(
        'EINVAL',
        `${habitOf(books)}: ${reason}`,
        `external.allocate(length, { align: ${iovaAlign} }) gives memory whose VA is`,
      )
    : refuse(
        'EINVAL',
        reason,
        'leave iovaAlign out, or give another IOVA; memory with an IOVA table has the IOVAs of the table',
      );
}

/** @throws EINVAL if it is not an IOVA, or the range would exceed 2^53 */
function checkIova(iova: Iova, range: Range, refuse: Refuse): void {
  if (!isAddress(iova) || !isAddress(iova + range.length - 1))
    throw refuse(
      'EINVAL',
      `${show(iova)} is not an IOVA that ${formatSize(range.length)} fit at`,
      'leave the IOVA out, and the domain chooses one',
    );
}

/** @throws EINVAL if peers would get more rights than the device */
function checkRemote(access: DmaAccess, remote: RemoteAccess, refuse: Refuse): void {
  if (access === 'read' && mayWrite(remote))
    throw refuse(
      'EINVAL',
      `peers can not get ${remote} access to what the device itself may only read`,
      "pass access: 'read-write', or remote: 'read'",
    );
}

/** @throws EINVAL as {@link checkRemote}; EACCES for writes to read-only memory */
function checkAccess(area: Area, access: DmaAccess, remote: RemoteAccess = 'none', refuse: Refuse): void {
  checkRemote(access, remote, refuse);
  if (access !== 'read' && !area.writable)
    throw refuse(
      'EACCES',
      `${area.label} is read-only, so that no device can get ${access} access`,
      "pass access: 'read'",
    );
}

/** The traits of a region with keys. @throws ENOTSUP if the domain has no such regions */
function regionOf(
  { constraints, name }: Books,
  { remote = 'none', paging = 'pinned' }: MapOptions,
  refuse: Refuse,
): RegionTraits {
  if (remote === LOCAL.remote && paging === LOCAL.paging) return LOCAL;
  if (constraints.regions === undefined)
    throw refuse(
      'ENOTSUP',
      `${name} has no peers over a network, and no paging of its own`,
      'leave remote and paging out',
    );
  if (paging === 'on-demand' && !constraints.regions.onDemand)
    throw refuse('ENOTSUP', `${name} can not page on demand`, "leave paging out, or pass 'pinned'");
  return { remote, paging };
}

/** The IOVAs of a range, as far as they are given: by the caller, the area's table, or the kind of domain. */
function place(books: Books, range: Range<Va>, area: Area, iova: Iova | undefined, refuse: Refuse): PlannedPiece[] {
  const { granule, iova: chosenBy } = books.constraints;
  const { start, length } = range;
  if (iova !== undefined) checkIova(iova, range, refuse);
  if (iova !== undefined && iova % granule !== 0)
    throw refuse(
      'EINVAL',
      `the IOVA ${hex(iova)} is not a multiple of ${hex(granule)}`,
      `${hex(iova - (iova % granule))} is one`,
    );
  const identity = Number(start) as Iova;
  if (takesVas(books) && iova !== undefined && iova !== identity)
    throw refuse('EINVAL', `${habitOf(books)}: the IOVA ${hex(iova)} would have no effect`, 'leave the IOVA out');
  if (area.iovas === undefined && chosenBy === 'table')
    throw refuse(
      'EINVAL',
      `${books.name} has no IOMMU: its devices take physical addresses, and ${area.label} has no table of them`,
      'take memory of the library with physical addresses as IOVAs, or register the memory with the physical address of each page as iovas',
    );
  const pieces = area.iovas === undefined ? undefined : [...tablePieces(books, range, area, refuse)].filter(isPiece);
  const given = takesVas(books) ? identity : area.iovaAt(start);
  if (iova !== undefined && given !== undefined && (iova !== given || (pieces?.length ?? 1) > 1)) {
    const has = area.iovas === undefined ? 'the same IOVA for every device' : 'an IOVA table';
    const says = `${area.label} has ${has}, which says ${hex(given)}, not ${hex(iova)}`;
    throw refuse('EINVAL', says, 'leave the IOVA out, or take memory without such a rule');
  }
  return pieces ?? [{ va: start, length, iova: given ?? iova }];
}

/** The pieces of memory with an IOVA table, for {@link piecesOfTable}. */
function* tablePieces(
  books: Books,
  range: Range<Va>,
  area: Area,
  refuse: Refuse,
): Generator<PlannedPiece | undefined, void, undefined> {
  const { granule, iova: chosenBy } = books.constraints;
  if (!takesVas(books)) {
    for (const run of area.eachIovaRun(range)) {
      if (run !== undefined && (run.iova % granule !== 0 || run.length % granule !== 0))
        throw refuse(
          'EINVAL',
          `the IOVA table of ${area.label} breaks inside a unit of ${hex(granule)}`,
          'its IOVAs are multiples of that unit',
        );
      yield run;
    }
    return;
  }
  // Devices with keys have no IOVAs that could contradict a table, unless the same IOVA for all devices was asked for.
  if (chosenBy === 'identity' || area.sameIova)
    for (const run of area.eachIovaRun(range)) {
      if (run !== undefined && Number(run.va) !== run.iova)
        throw refuse(
          'EINVAL',
          `${habitOf(books)}, and ${area.label} has other IOVAs: ${hex(run.iova)} for VA ${hex(run.va)}`,
          'take memory without an IOVA table, or IOVA mode va',
        );
      yield undefined;
    }
  yield { va: range.start, length: range.length, iova: Number(range.start) as Iova };
}

function isPiece(piece: PlannedPiece | undefined): piece is PlannedPiece {
  return piece !== undefined;
}

/** Are IOVAs of this domain always VAs? */
function takesVas({ constraints: { iova } }: Books): boolean {
  return iova === 'identity' || iova === 'ignored';
}

function habitOf({ constraints, name }: Books): string {
  const habit = constraints.iova === 'identity' ? 'uses VAs as IOVAs' : 'ignores IOVAs and uses VAs';
  return `${name} ${habit}`;
}

function mustBeInWindows({ windows, name }: Books, piece: PlannedPiece, refuse: Refuse, area?: Area): void {
  const { iova, length } = piece;
  if (iova === undefined) return;
  for (const { start, end } of windows) if (iova >= start && iova + length <= end) return;
  const iovas = new Range(iova, length);
  const reason = `the IOVAs ${iovas.toString()} are not inside a window of the domain`;
  const hint = area?.sameIova === true ? '; without sameIova, the domain would choose others' : '';
  throw refuse('ERANGE', reason, `${name} has ${windows.map(String).join(', ')}${hint}`);
}

/** An identical mapping; `undefined` if nothing is mapped at these VAs. @throws EEXIST if something else is; EBUSY */
function findSame(
  ledger: Ledger,
  range: Range<Va>,
  { access, region, iova, iovaAlign }: Pick<Plan, 'access' | 'region' | 'iovaAlign'> & Pick<MapOptions, 'iova'>,
  refuse: Refuse,
): Claim | undefined {
  const other = ledger.overlappingVa(range.start, range.length);
  if (other === undefined) return undefined;
  const claim = other.user;
  if (claim === undefined || !claim.whole || !claim.range.equals(range)) throw inTheWay(other, 'it overlaps', refuse);
  // All entries of a whole claim are in the same state.
  if (other.state !== 'live') throw inTheWay(other, 'it is', refuse);
  if (claim.access !== access) throw inTheWay(other, `it is asked for with ${access} access, but is`, refuse);
  if (claim.region.remote !== region.remote)
    throw inTheWay(other, `it is asked for with ${region.remote} access for peers, but is`, refuse);
  if (claim.region.paging !== region.paging) throw inTheWay(other, `it is asked for ${region.paging}, but is`, refuse);
  if (iova !== undefined && claim.entries[0].iova !== iova)
    throw inTheWay(other, `it is asked for at IOVA ${hex(iova)}, but is`, refuse);
  if (claim.entries[0].iova % iovaAlign !== 0)
    throw inTheWay(other, `it is asked for at a multiple of ${hex(iovaAlign)}, but is`, refuse);
  return claim;
}

function mustBeFree(ledger: Ledger, { iova, length }: PlannedPiece, refuse: Refuse): void {
  const other = iova === undefined ? undefined : ledger.overlappingIova(iova, length);
  if (iova !== undefined && other !== undefined) throw inTheWay(other, `IOVA ${hex(iova)} is taken by`, refuse);
}

/** The error that names the conflicting mapping; EBUSY if that is being made or undone. */
function inTheWay(entry: Entry, how: string, refuse: Refuse): DmaError {
  const passing = entry.state === 'mapping' || entry.state === 'unmapping';
  const whose = entry.devices.length === 0 ? '' : ` of ${entry.devices.join(', ')}`;
  const { remote, paging } = entry.region;
  const region = entry.region === LOCAL ? '' : `, ${remote} for peers, ${paging}`;
  const where = `VA ${entry.vaRange.toString()}, IOVA ${entry.iovaRange.toString()}, ${entry.access}${region}, ${entry.state}`;
  return refuse(
    passing ? 'EBUSY' : 'EEXIST',
    `${how} the mapping${whose} of ${entry.area.label} (${where})`,
    passing
      ? 'wait until that has ended'
      : entry.area.owner === 'external'
        ? 'only the very same mapping can be made again; unmap that one first'
        : 'memory of the library and of heaps is mapped for every device by itself: device.iovaOf(va) says where, and nothing has to be mapped',
  );
}

function checkLimits(
  { constraints, ledger, locked, name }: Books,
  pieces: number,
  bytes: number,
  refuse: Refuse,
): void {
  const left = constraints.entryLimit - ledger.size;
  if (pieces > left) {
    const reason = `${name} takes ${constraints.entryLimit} mappings; ${left} are left, and this needs ${pieces}`;
    throw refuse('ENOSPC', reason, 'map fewer and larger ranges: one large area instead of many small ones');
  }
  if (!constraints.pins || bytes === 0) return;
  const short = locked.take(bytes);
  if (short === undefined) return;
  const facts = `RLIMIT_MEMLOCK is ${formatSize(short.limit)}, ${formatSize(short.used)} of it are used`;
  const next = `this mapping needs ${formatSize(bytes)} more: raise it with "ulimit -l" or LimitMEMLOCK= of the service`;
  throw refuse('ENOMEM', 'mapping it would exceed the locked-memory limit', `${facts}, ${next}`);
}
