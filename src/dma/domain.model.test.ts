/**
 * Random operations on a domain, each compared with a model that keeps lists and searches them from end to end. What the
 * space has, what the ledger says, what translates and who holds memory must be the same after each of them, whatever
 * the space refused, answered wrongly, or died of.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { DmaError, isDmaError } from '../errors.js';
import { AreaIndex } from '../memory/area-index.js';
import type { Area } from '../memory/area.js';
import { Range } from '../ranges.js';
import type { Iova, Va } from '../units.js';
import { grants, type DmaAccess } from './address-space.js';
import type { Mapping } from './mapping.js';
import { Bench, PAGE, part, type Fault } from '../../test/fakes/dma/address-space.js';

const DEVICES = ['d0', 'd1', 'd2'];
const LOW = Range.between(PAGE as Iova, 17 * PAGE);
const TABLE = [0x100000, 0x101000, 0x200000, 0x201000, 0x202000, 0x180000, 0x181000, 0x182000];

/** What a world is like. `low`: the IOVA windows hold no VA, and not everything at once. */
interface Config {
  readonly partialUnmap: boolean;
  readonly iova: 'free' | 'identity' | 'ignored';
  readonly entryLimit: number;
  readonly low: boolean;
  readonly asynchronous: boolean;
}

type Mode = 'refuse' | 'short' | 'die';

interface MapOp {
  readonly kind: 'map';
  readonly form: 'sync' | 'async' | 'start';
  readonly device: string;
  readonly area: number;
  readonly page: number;
  readonly pages: number;
  readonly odd: boolean;
  readonly access: DmaAccess | undefined;
  readonly iova: 'none' | 'va' | 'low' | 'odd' | 'out' | 'table';
  readonly chunk: number;
  readonly abortAt: number;
  readonly mapFault: number;
  readonly unmapFault: number;
  readonly mode: Mode;
}

type Op =
  | MapOp
  | { readonly kind: 'finish'; readonly abort: boolean; readonly mapFault: number; readonly mode: Mode }
  | {
      readonly kind: 'unmap';
      readonly pick: number;
      readonly async: boolean;
      readonly fault: number;
      readonly mode: Mode;
    }
  | {
      readonly kind: 'unmapRange';
      readonly pick: number;
      readonly device: string | undefined;
      readonly from: number;
      readonly pages: number;
      readonly wrongIova: boolean;
      readonly fault: number;
      readonly mode: Mode;
    }
  | { readonly kind: 'detach'; readonly device: string; readonly fault: number; readonly mode: Mode }
  | { readonly kind: 'fail' }
  | { readonly kind: 'tick'; readonly ms: number };

interface Claim {
  readonly device: string;
  readonly area: Area;
  readonly va: number;
  readonly length: number;
  readonly access: DmaAccess;
  readonly handle: Mapping;
  whole: boolean;
  entries: Entry[];
}

interface Entry {
  readonly area: Area;
  va: number;
  iova: number;
  length: number;
  readonly access: DmaAccess;
  claims: Claim[];
  state: 'live' | 'mapping' | 'stuck';
  /** whose hold it is that stays, for what is stuck */
  stuckFor?: string;
}

/** A call of the space. */
interface Placed {
  readonly va: number;
  readonly iova: number;
  readonly length: number;
}

interface Piece {
  readonly va: number;
  readonly length: number;
  readonly iova: number | undefined;
}

interface Expected {
  readonly area: Area;
  readonly access: DmaAccess;
  readonly share?: Claim;
  readonly pieces: Piece[];
}

const overlap = (a: number, aLength: number, b: number, bLength: number): boolean => a < b + bLength && b < a + aLength;

/** One domain, its model, and what joins them. */
class World {
  readonly bench: Bench;
  readonly entries: Entry[] = [];
  readonly claims: Claim[] = [];
  readonly attached = new Set<string>();
  pending:
    | {
        device: string;
        area: Area;
        entries: Entry[];
        finish: (abort: boolean) => Promise<unknown>;
        op: MapOp;
        expected: Expected;
      }
    | undefined;
  dead = false;

  constructor(
    readonly config: Config,
    readonly areas: Area[],
    index: AreaIndex,
  ) {
    const windows = config.low ? [LOW, Range.between(0x100000 as Iova, 0x300000)] : [Range.between(0 as Iova, 2 ** 40)];
    const { partialUnmap, iova, entryLimit, asynchronous } = config;
    this.bench = new Bench({
      areas: index,
      asynchronous,
      constraints: {
        partialUnmap,
        iova,
        entryLimit,
        windows: iova === 'identity' ? [Range.between(0 as Iova, 2 ** 40)] : windows,
      },
      domain: { origins: false },
    });
    for (const device of DEVICES) this.#attach(device);
  }

  #attach(device: string): void {
    this.bench.domain.attach(device);
    this.attached.add(device);
  }

  // --- what must come out ---

  #expectMap(op: MapOp, va: number, length: number, iova: number | undefined): Expected | string {
    const { constraints } = this.bench.space;
    if (va % PAGE !== 0) return 'EINVAL';
    const area = this.areas.find(({ range }) => va >= range.start && va + length <= range.end);
    if (area === undefined) return 'EINVAL';
    const access = op.access ?? (area.writable ? 'read-write' : 'read');
    if (iova !== undefined && iova % PAGE !== 0) return 'EINVAL';
    let pieces: Piece[] = [{ va, length, iova }];
    if (constraints.iova !== 'free') {
      if (iova !== undefined && iova !== va) return 'EINVAL';
      // No page of the table is its VA.
      if (constraints.iova === 'identity' && area.iovas !== undefined) return 'EINVAL';
      pieces = [{ va, length, iova: va }];
    } else if (area.sameIova) {
      if (iova !== undefined && iova !== va) return 'EINVAL';
      pieces = [{ va, length, iova: va }];
    } else if (area.iovas !== undefined) {
      pieces = [];
      for (let at = va; at < va + length; at += PAGE) {
        const here = area.iovas[(at - area.range.start) / PAGE];
        const last = pieces.at(-1);
        if (last?.iova !== undefined && last.iova + last.length === here)
          pieces[pieces.length - 1] = { ...last, length: last.length + PAGE };
        else pieces.push({ va: at, length: PAGE, iova: here });
      }
      if (iova !== undefined && (pieces.length > 1 || pieces[0].iova !== iova)) return 'EINVAL';
    }
    if (access !== 'read' && !area.writable) return 'EACCES';
    const inside = (piece: Piece): boolean =>
      piece.iova === undefined ||
      constraints.windows.some(
        ({ start, end }) => (piece.iova ?? 0) >= start && (piece.iova ?? 0) + piece.length <= end,
      );
    if (constraints.iova !== 'ignored' && !pieces.every(inside)) return 'ERANGE';

    const byVa = this.entries.filter((each) => overlap(each.va, each.length, va, length)).sort((a, b) => a.va - b.va);
    if (byVa.length > 0) {
      const [first] = byVa;
      const refused = first.state === 'mapping' ? 'EBUSY' : 'EEXIST';
      const share = first.claims.at(0);
      if (first.state !== 'live' || share === undefined || !share.whole) return refused;
      const same = share.va === va && share.length === length && share.access === access;
      if (!same || (iova !== undefined && share.entries[0].iova !== iova)) return refused;
      return { area, access, share, pieces };
    }
    for (const piece of pieces) {
      const { iova: wanted } = piece;
      if (wanted === undefined) continue;
      const taken = this.entries
        .filter((each) => overlap(each.iova, each.length, wanted, piece.length))
        .sort((a, b) => a.iova - b.iova);
      if (taken.length > 0) return taken[0].state === 'mapping' ? 'EBUSY' : 'EEXIST';
    }
    if (this.entries.length + pieces.length > constraints.entryLimit) return 'ENOSPC';
    if (!pieces.every((piece) => piece.iova !== undefined || this.#hasRoom(piece.length))) return 'ENOSPC';
    return { area, access, pieces };
  }

  /** Is there a gap of that many bytes in the windows? */
  #hasRoom(length: number): boolean {
    return this.bench.space.constraints.windows.some((window) => {
      let from = Math.max(window.start, PAGE);
      for (const entry of [...this.entries].sort((a, b) => a.iova - b.iova)) {
        if (entry.iova + entry.length <= from || entry.iova >= window.end) continue;
        if (entry.iova - from >= length) return true;
        from = entry.iova + entry.length;
      }
      return window.end - from >= length;
    });
  }

  /** The space's calls were these pieces, perhaps cut up; made into entries. */
  #entriesOf(calls: readonly Placed[], expected: Expected, whole: boolean): Entry[] {
    const { area, access } = expected;
    const { windows, iova: chosenBy } = this.bench.space.constraints;
    const queue = [...calls];
    const entries: Entry[] = [];
    for (const piece of expected.pieces) {
      let delta: number | undefined = piece.iova === undefined ? undefined : piece.iova - piece.va;
      const vaIsFree =
        windows.some(({ start, end }) => piece.va >= start && piece.va + piece.length <= end) &&
        !this.entries.some((each) => overlap(each.iova, each.length, piece.va, piece.length));
      if (piece.iova === undefined && vaIsFree) delta = 0;
      for (let at = 0; at < piece.length;) {
        const call = queue.shift();
        if (call === undefined) {
          assert.equal(whole, false, 'the space got fewer calls than there are pieces');
          return entries;
        }
        delta ??= call.iova - call.va;
        assert.deepEqual([call.va, call.iova], [piece.va + at, piece.va + at + delta]);
        assert.ok(at + call.length <= piece.length);
        if (chosenBy !== 'ignored')
          assert.ok(windows.some(({ start, end }) => call.iova >= start && call.iova + call.length <= end));
        entries.push({ area, access, ...call, claims: [], state: 'live' });
        at += call.length;
      }
    }
    assert.deepEqual(queue, []);
    return entries;
  }

  // --- operations ---

  async run(op: Op): Promise<void> {
    switch (op.kind) {
      case 'map':
        return this.#map(op);
      case 'finish':
        return this.#finish(op.abort, op.mapFault, op.mode);
      case 'unmap':
        return this.#unmap(op);
      case 'unmapRange':
        return this.#unmapRange(op);
      case 'detach':
        return this.#detach(op);
      case 'fail':
        await this.#finish(true, 0, 'refuse');
        this.bench.domain.fail(new DmaError({ code: 'ECONNRESET', operation: 'test', reason: 'told to' }));
        return this.#die();
      case 'tick':
        this.bench.ms += op.ms;
    }
  }

  #fault(mode: Mode): Fault {
    if (mode === 'short') return { bytes: 0 };
    if (mode === 'refuse') return 'EIO';
    return {
      dies: () => this.bench.domain.fail(new DmaError({ code: 'ECONNRESET', operation: 'test', reason: 'died' })),
    };
  }

  /** Runs `work` and tells the code of its error, and the calls that the space got. */
  async #observe<T>(work: () => T | Promise<T>): Promise<{ value?: T; code?: string; maps: Placed[]; unmaps: number }> {
    const { calls } = this.bench.space;
    calls.length = 0;
    const seen = (): { maps: Placed[]; unmaps: number } => ({
      maps: calls
        .filter(({ call }) => call === 'map')
        .map(({ segment: { va, iova, length } }) => ({ va, iova, length })),
      unmaps: calls.filter(({ call }) => call === 'unmap').length,
    });
    try {
      return { value: await work(), ...seen() };
    } catch (error) {
      if (!isDmaError(error)) throw error;
      return { code: error.code, ...seen() };
    }
  }

  async #map(op: MapOp): Promise<void> {
    const { domain, space } = this.bench;
    if (!this.attached.has(op.device)) this.#attach(op.device);
    const area = this.areas[op.area];
    const va = area.range.start + op.page * PAGE + (op.odd ? 8 : 0);
    const length = op.pages * PAGE;
    const iova = {
      none: undefined,
      va,
      low: LOW.start + (op.page % 4) * PAGE,
      odd: 0x1008,
      out: 2 ** 41,
      table: area.iovas?.[op.page] ?? undefined,
    }[op.iova];
    const expected = this.#expectMap(op, va, length, iova);
    const options = { iova: iova as Iova | undefined, access: op.access };
    if (op.form === 'start' && this.config.asynchronous && this.pending === undefined)
      return this.#start(op, part(va, length), options, expected);

    const async = op.form !== 'sync' && this.pending === undefined;
    const stop = new AbortController();
    if (async && op.abortAt === 0) stop.abort();
    let told = 0;
    const onProgress = (): void => {
      if (++told === op.abortAt) stop.abort();
    };
    if (op.mapFault > 0) space.fail('map', op.mapFault, this.#fault(op.mode === 'short' ? 'refuse' : op.mode));
    if (op.unmapFault > 0) space.fail('unmap', op.unmapFault, this.#fault(op.mode));
    const result = await this.#observe(() =>
      async
        ? domain.mapForAsync(op.device, part(va, length), {
            ...options,
            onProgress,
            signal: stop.signal,
            chunkBytes: op.chunk === 0 ? undefined : op.chunk * PAGE,
          })
        : domain.mapFor(op.device, part(va, length), options),
    );
    space.calm();
    if (typeof expected === 'string') {
      assert.deepEqual([result.code, result.maps, result.unmaps], [expected, [], 0]);
      return;
    }
    const aborted =
      async && (op.abortAt === 0 || (expected.share === undefined && op.abortAt > 0 && told >= op.abortAt));
    const failed = op.mapFault > 0 && result.maps.length >= op.mapFault && !(async && op.abortAt === 0);
    if (!aborted && !failed) {
      if (result.value === undefined) assert.fail(`${result.code} instead of a mapping`);
      this.#publish(op.device, expected, result.maps, result.value);
      return;
    }
    if (result.value !== undefined) assert.fail('mapped in spite of all');
    assert.equal(result.code, failed ? (op.mode === 'die' ? 'ENODEV' : 'EIO') : 'ECANCELED');
    if (failed && op.mode === 'die') return this.#die();
    if (expected.share !== undefined || (async && op.abortAt === 0)) return;
    const entries = this.#entriesOf(result.maps, expected, false);
    if (failed) entries.pop();
    // The undo goes backwards, whatever fails on its way.
    const at = entries.length - op.unmapFault;
    if (op.unmapFault > 0 && at >= 0) {
      if (op.mode === 'die') return this.#die();
      assert.equal(result.unmaps, entries.length);
      this.entries.push({ ...entries[at], state: 'stuck', stuckFor: op.device });
    } else assert.equal(result.unmaps, entries.length);
  }

  #publish(device: string, expected: Expected, maps: readonly Placed[], handle: Mapping): void {
    const { area, access, share } = expected;
    const entries = share?.entries ?? this.#entriesOf(maps, expected, true);
    assert.ok(entries.length > 0);
    if (share === undefined) {
      const limit = this.bench.space.constraints.entryLimit;
      assert.ok(this.entries.length + entries.length <= limit);
      this.entries.push(...entries);
    } else assert.deepEqual(maps, []);
    const { va, length } = handle;
    const claim: Claim = { device, area, va, length, access, handle, whole: true, entries: [...entries] };
    for (const entry of entries) entry.claims.push(claim);
    this.claims.push(claim);
  }

  /** Begins a mapping that waits in the space. */
  #start(op: MapOp, target: { va: Va; length: number }, options: object, expected: Expected | string): Promise<void> {
    const { domain, space } = this.bench;
    const stop = new AbortController();
    const proceed = space.hold();
    space.calls.length = 0;
    const mapping = domain.mapForAsync(op.device, target, { ...options, signal: stop.signal });
    const settled = mapping.then(
      (value) => value,
      (error: unknown) => (isDmaError(error) ? error.code : String(error)),
    );
    const finish = (abort: boolean): Promise<unknown> => {
      if (abort) stop.abort();
      proceed();
      return settled;
    };
    if (typeof expected === 'string' || expected.share !== undefined) {
      proceed();
      return settled.then((value) => {
        if (typeof expected === 'string') assert.equal(value, expected);
        else if (typeof value === 'string') assert.fail(value);
        else this.#publish(op.device, expected, [], value);
      });
    }
    const { area, access } = expected;
    const entries = expected.pieces.map(({ va, length, iova }): Entry => {
      const chosen = iova ?? this.#iovaOfReserved(va);
      return { area, access, va, length, iova: chosen, claims: [], state: 'mapping' };
    });
    this.entries.push(...entries);
    this.pending = { device: op.device, area, entries, finish, op, expected };
    return Promise.resolve();
  }

  /** The IOVA that was reserved for the VA, found by asking for every page. */
  #iovaOfReserved(va: number): number {
    const candidates = [va, ...Array.from({ length: 16 }, (_, i) => LOW.start + i * PAGE)];
    for (let at = 0x100000; at < 0x300000; at += PAGE) candidates.push(at);
    const iova = candidates.find((each) => this.bench.domain.vaOf(each) === va);
    return iova ?? assert.fail('nothing is reserved');
  }

  async #finish(abort: boolean, mapFault: number, mode: Mode): Promise<void> {
    const { pending } = this;
    if (pending === undefined) return;
    this.pending = undefined;
    const { space } = this.bench;
    if (mapFault > 0) space.fail('map', mapFault, this.#fault(mode === 'short' ? 'refuse' : mode));
    const result = await pending.finish(abort);
    space.calm();
    for (const entry of pending.entries) this.entries.splice(this.entries.indexOf(entry), 1);
    if (mapFault > 0 && mapFault <= pending.entries.length && !(abort && mapFault > 1)) {
      assert.equal(result, mode === 'die' ? 'ENODEV' : 'EIO');
      if (mode === 'die') await this.#die();
    } else if (abort) assert.equal(result, 'ECANCELED');
    else if (typeof result === 'string') assert.fail(result);
    else {
      const maps = pending.entries.map(({ va, iova, length }) => ({ va, iova, length }));
      this.#publish(pending.device, pending.expected, maps, result as Mapping);
    }
  }

  /** What unmapping a whole claim must do; the `fault`th call of the space fails. @returns whether it does */
  #release(claim: Claim, fault: number): boolean {
    let calls = 0;
    for (const entry of [...claim.entries].reverse()) {
      if (entry.claims.length === 1) {
        if (++calls === fault) return false;
        this.entries.splice(this.entries.indexOf(entry), 1);
      }
      entry.claims.splice(entry.claims.indexOf(claim), 1);
      claim.entries.pop();
      claim.whole = false;
    }
    this.claims.splice(this.claims.indexOf(claim), 1);
    return true;
  }

  async #unmap(op: Extract<Op, { kind: 'unmap' }>): Promise<void> {
    if (this.claims.length === 0) return;
    const claim = this.claims[op.pick % this.claims.length];
    const own = claim.entries.filter((entry) => entry.claims.length === 1).length;
    const { space } = this.bench;
    if (op.fault > 0) space.fail('unmap', op.fault, this.#fault(op.mode));
    const { handle } = claim;
    const result = await this.#observe(() =>
      op.async && this.pending === undefined ? handle.unmapAsync() : handle.unmap(),
    );
    space.calm();
    if (op.mode === 'die' && op.fault > 0 && op.fault <= own) {
      assert.equal(result.code, undefined);
      return this.#die();
    }
    assert.equal(result.code, this.#release(claim, op.fault) ? undefined : 'EIO');
  }

  async #unmapRange(op: Extract<Op, { kind: 'unmapRange' }>): Promise<void> {
    const stuck = this.entries.filter(({ state }) => state === 'stuck');
    const targets = [...this.claims, ...stuck.map((entry) => ({ ...entry, device: entry.stuckFor ?? '' }))];
    if (targets.length === 0) return;
    const target = targets[op.pick % targets.length];
    const device = op.device ?? target.device;
    const va = target.va + op.from * PAGE;
    const length = op.pages === 0 ? target.length : op.pages * PAGE;
    const { space, domain } = this.bench;
    const { partialUnmap, entryLimit } = space.constraints;
    const at = this.entries.find((entry) => va >= entry.va && va < entry.va + entry.length);
    const mine = at?.claims.filter((claim) => claim.device === device) ?? [];
    const claim =
      mine.find((each) => each.va === va && each.length === length) ??
      mine.find((each) => va >= each.va && va + length <= each.va + each.length);
    const iova = at === undefined ? undefined : at.iova + (va - at.va) + (op.wrongIova ? PAGE : 0);
    const whole = claim !== undefined && claim.va === va && claim.length === length;
    const cuts = (claim?.entries ?? [])
      .filter((entry) => overlap(entry.va, entry.length, va, length))
      .map((entry) => ({
        entry,
        from: Math.max(entry.va, va),
        to: Math.min(entry.va + entry.length, va + length),
      }));
    let code: string | undefined;
    if (claim === undefined || op.wrongIova) code = 'EINVAL';
    else if (!whole) {
      if (!partialUnmap) code = 'ENOTSUP';
      else if (cuts.reduce((sum, { from, to }) => sum + to - from, 0) !== length) code = 'EINVAL';
      else if (cuts.some(({ entry }) => entry.claims.length > 1)) code = 'EBUSY';
      else if (
        this.entries.length >= entryLimit &&
        cuts.some(({ entry, from, to }) => from > entry.va && to < entry.va + entry.length)
      )
        code = 'ENOSPC';
    }
    if (op.fault > 0) space.fail('unmap', op.fault, this.#fault(op.mode));
    const result = await this.#observe(() => domain.unmapFor(device, { ...part(va, length), iova: iova }));
    space.calm();
    if (code !== undefined || claim === undefined) return assert.deepEqual([result.code, result.unmaps], [code, 0]);
    const own = whole ? claim.entries.filter((entry) => entry.claims.length === 1).length : cuts.length;
    const faulted = op.fault > 0 && op.fault <= own;
    assert.equal(result.code, faulted && op.mode !== 'die' ? 'EIO' : undefined);
    if (faulted && op.mode === 'die') return this.#die();
    if (whole) {
      this.#release(claim, op.fault);
      return;
    }
    for (const [i, { entry, from, to }] of cuts.entries()) {
      if (i + 1 === op.fault) return;
      claim.whole = false;
      const rest = (start: number, end: number): Entry[] =>
        start === end
          ? []
          : [{ ...entry, va: start, iova: entry.iova + (start - entry.va), length: end - start, claims: [claim] }];
      const left = [...rest(entry.va, from), ...rest(to, entry.va + entry.length)];
      this.entries.splice(this.entries.indexOf(entry), 1, ...left);
      claim.entries.splice(claim.entries.indexOf(entry), 1, ...left);
    }
    if (claim.entries.length === 0) this.claims.splice(this.claims.indexOf(claim), 1);
  }

  async #detach(op: Extract<Op, { kind: 'detach' }>): Promise<void> {
    if (!this.attached.has(op.device)) return this.#attach(op.device);
    await this.#finish(true, 0, 'refuse');
    const { space, domain } = this.bench;
    if (op.fault > 0) space.fail('unmap', op.fault, this.#fault(op.mode));
    const result = await this.#observe(() => domain.detach(op.device));
    const fired = space.calm() === 0 && op.fault > 0;
    this.attached.delete(op.device);
    assert.equal(result.code, fired && op.mode !== 'die' ? 'EIO' : undefined);
    if (this.attached.size === 0) assert.equal(space.closed, 1);
    if ((fired && op.mode === 'die') || this.attached.size === 0) return this.#die();
    let left = op.fault;
    for (const claim of this.claims.filter(({ device }) => device === op.device).reverse()) {
      const calls = claim.entries.filter((entry) => entry.claims.length === 1).length;
      if (this.#release(claim, left)) left -= calls;
      else {
        left = 0;
        this.claims.splice(this.claims.indexOf(claim), 1);
        for (const entry of claim.entries) {
          if (entry.claims.length > 1) entry.claims.splice(entry.claims.indexOf(claim), 1);
          else Object.assign(entry, { state: 'stuck', stuckFor: op.device, claims: [] });
        }
      }
      if (left <= 0) left = 0;
    }
  }

  /** The domain is gone: nothing may be left of it. */
  async #die(): Promise<void> {
    this.dead = true;
    const { pending } = this;
    this.pending = undefined;
    if (pending !== undefined) assert.equal(await pending.finish(false), 'ENODEV');
    for (const { handle } of this.claims) assert.equal(handle.live, false);
    this.entries.length = 0;
    this.claims.length = 0;
    assert.throws(() => this.bench.domain.mapFor('d0', part(this.areas[0].range.start, PAGE)));
  }

  // --- the comparison ---

  check(): void {
    const { domain, space } = this.bench;
    assert.deepEqual(space.violations, []);
    assert.equal(domain.entries, this.entries.length);
    assert.equal(
      domain.bytes,
      this.entries.reduce((sum, { length }) => sum + length, 0),
    );
    if (!this.dead) {
      const there = this.entries.filter(({ state }) => state !== 'mapping').sort((a, b) => a.iova - b.iova);
      assert.deepEqual(
        space.table,
        there.map(({ va, iova, length, access }) => ({ va, iova, length, access })),
      );
    }
    assert.deepEqual(new Set(domain.mappings()), new Set(this.claims.map(({ handle }) => handle)));
    if (!this.dead) assert.deepEqual(new Set(domain.devices), this.attached);
    for (const { handle, device, access, entries } of this.claims) {
      assert.deepEqual(
        [handle.live, handle.device, handle.access, handle.iova],
        [true, device, access, entries[0].iova],
      );
      const segments: { va: number; iova: number; length: number }[] = [];
      for (const { va, iova, length } of entries) {
        const last = segments.at(-1);
        if (last !== undefined && last.va + last.length === va && last.iova + last.length === iova)
          last.length += length;
        else segments.push({ va, iova, length });
      }
      assert.deepEqual(handle.segments, segments);
    }
    for (const area of this.areas) {
      for (let va: number = area.range.start - PAGE; va <= area.range.end; va += PAGE) {
        const entry = this.entries.find((each) => va >= each.va && va < each.va + each.length);
        const iova = entry === undefined ? -1 : entry.iova + (va - entry.va);
        assert.equal(domain.iovaOf(va + 5), entry?.state === 'live' ? iova + 5 : -1);
        if (entry === undefined) continue;
        assert.equal(domain.vaOf(iova + PAGE - 1), va + PAGE - 1);
        const resolved = domain.resolve(iova, PAGE, 'write');
        assert.equal(
          typeof resolved === 'string' ? resolved : resolved.va,
          grants(entry.access, 'write') ? va : 'EACCES',
        );
      }
      const holders = new Map<string, number>();
      const hold = (device: string): unknown => holders.set(device, (holders.get(device) ?? 0) + 1);
      for (const claim of this.claims) if (claim.area === area) hold(claim.device);
      for (const entry of this.entries) if (entry.area === area && entry.stuckFor !== undefined) hold(entry.stuckFor);
      if (this.pending?.area === area) hold(this.pending.device);
      assert.deepEqual(new Map(area.holders), holders);
    }
    const free = LOW.start + 5 * PAGE;
    if (!this.entries.some(({ iova, length }) => overlap(iova, length, free, 1)))
      assert.equal(domain.vaOf(free), undefined);
  }

  /** Unmaps all, and looks for what was left behind. */
  async end(): Promise<void> {
    const { domain, bench } = this;
    await this.#finish(true, 0, 'refuse');
    for (const claim of [...this.claims]) {
      claim.handle.unmap();
      this.#release(claim, 0);
    }
    this.check();
    if (this.dead) return;
    assert.equal(
      this.entries.every(({ state }) => state === 'stuck'),
      true,
    );
    if (this.entries.length === 0 && this.config.low && this.config.iova === 'free') {
      // Every IOVA was given back: all of the low window can be taken, as one.
      bench.ms += 1e6;
      domain
        .mapFor(
          'd0',
          this.areas[0].range.length === LOW.length ? part(this.areas[0].range.start, LOW.length) : assert.fail(),
          { iova: LOW.start },
        )
        .unmap();
      this.attached.add('d0');
    }
    for (const device of this.attached) await domain.detach(device);
    assert.deepEqual([bench.space.closed, domain.entries, [...domain.mappings()]], [1, 0, []]);
    for (const area of this.areas) assert.equal(area.holders.size, 0);
  }

  get domain(): Bench['domain'] {
    return this.bench.domain;
  }
}

const fault = fc.oneof(
  { weight: 6, arbitrary: fc.constant(0) },
  { weight: 2, arbitrary: fc.integer({ min: 1, max: 3 }) },
);
const mode = fc.oneof(
  { weight: 5, arbitrary: fc.constantFrom<Mode>('refuse', 'short') },
  { weight: 1, arbitrary: fc.constant<Mode>('die') },
);
const device = fc.constantFrom(...DEVICES);

const mapOp: fc.Arbitrary<Op> = fc.record({
  kind: fc.constant('map' as const),
  form: fc.constantFrom('sync' as const, 'sync' as const, 'async' as const, 'start' as const),
  device,
  area: fc.constantFrom(0, 0, 0, 1, 1, 2, 3),
  page: fc.oneof({ weight: 3, arbitrary: fc.constantFrom(0, 4, 8) }, { weight: 1, arbitrary: fc.nat(16) }),
  pages: fc.oneof(
    { weight: 3, arbitrary: fc.constantFrom(1, 4) },
    { weight: 1, arbitrary: fc.integer({ min: 1, max: 9 }) },
  ),
  odd: fc.oneof({ weight: 30, arbitrary: fc.constant(false) }, { weight: 1, arbitrary: fc.constant(true) }),
  access: fc.constantFrom<DmaAccess | undefined>(undefined, undefined, undefined, undefined, 'read', 'write'),
  iova: fc.constantFrom('none', 'none', 'none', 'none', 'none', 'va', 'low', 'odd', 'out', 'table'),
  chunk: fc.nat(3),
  abortAt: fc.constantFrom(-1, -1, -1, 0, 1, 2, 3),
  mapFault: fault,
  unmapFault: fault,
  mode,
});

const op: fc.Arbitrary<Op> = fc.oneof(
  { weight: 10, arbitrary: mapOp },
  {
    weight: 2,
    arbitrary: fc.record({ kind: fc.constant('finish' as const), abort: fc.boolean(), mapFault: fault, mode }),
  },
  {
    weight: 4,
    arbitrary: fc.record({ kind: fc.constant('unmap' as const), pick: fc.nat(20), async: fc.boolean(), fault, mode }),
  },
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constant('unmapRange' as const),
      pick: fc.nat(20),
      device: fc.option(device, { nil: undefined, freq: 4 }),
      from: fc.constantFrom(0, 0, 0, 1, 2, 3),
      pages: fc.constantFrom(0, 0, 1, 2, 3, 4),
      wrongIova: fc.constantFrom(false, false, false, false, true),
      fault,
      mode,
    }),
  },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('detach' as const), device, fault, mode }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('tick' as const), ms: fc.constantFrom(10, 60, 200) }) },
);
const opOrEnd: fc.Arbitrary<Op> = fc.oneof(
  { weight: 150, arbitrary: op },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('fail' as const) }) },
);

const config: fc.Arbitrary<Config> = fc.record({
  partialUnmap: fc.boolean(),
  iova: fc.constantFrom('free', 'free', 'free', 'identity', 'ignored'),
  entryLimit: fc.constantFrom(Infinity, Infinity, 4, 9),
  low: fc.boolean(),
  asynchronous: fc.boolean(),
});

test('a domain does what its model does, whatever the space does', async () => {
  let operations = 0;
  await fc.assert(
    fc.asyncProperty(
      config,
      fc.array(opOrEnd, { minLength: 1, maxLength: 300, size: 'max' }),
      async (settings, ops) => {
        const index = new AreaIndex();
        const made = new Bench({ areas: index });
        const areas = [
          made.area(0x10000000, 16),
          made.area(0x20000000, 8, { iovas: TABLE }),
          made.area(0x30000000, 4, { writable: false }),
          made.area(0x40000000, 8, { sameIova: true }),
        ];
        let world = new World(settings, areas, index);
        for (const each of ops) {
          await world.run(each);
          world.check();
          operations++;
          if (world.dead) {
            await world.end();
            world = new World(settings, areas, index);
          }
        }
        await world.end();
      },
    ),
    { numRuns: Number(process.env.ANYDMA_RUNS ?? 100) },
  );
  assert.ok(operations >= 10_000, `${operations} operations`);
});
