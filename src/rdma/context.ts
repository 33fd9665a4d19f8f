/**
 * An open RDMA device of the kernel: its context, its one protection domain, and the regions registered in it. All
 * names of the device (its PCI address, a second port) share these, so memory mapped under one name works for the
 * others.
 */
import { DmaError, throwFirst, undoAll, withUndo } from '../errors.js';
import type { Platform, Watch } from '../platform/ports.js';
import type { VerbsPort } from '../platform/rdma/verbs-port.js';
import type {
  VerbsAsyncEvent,
  VerbsContext,
  VerbsDevice,
  VerbsDeviceAttributes,
  VerbsMr,
  VerbsPd,
} from '../platform/rdma/verbs-types.js';
import { RangeMap } from '../range-map.js';
import type { Range } from '../ranges.js';
import { hex } from '../units.js';
import { CmHub } from './cm-hub.js';
import { Limits } from './limits.js';
import { ipv4Of } from './gid.js';
import { Turns } from './turns.js';
import { shortForm } from '../short-form.js';

/** The parts of the platform that RDMA uses. */
export type RdmaPlatform = Pick<Platform, 'memory' | 'readiness' | 'limits' | 'kernel' | 'rdmaCm'> & {
  readonly verbs: VerbsPort;
};

/**
 * An object that keeps a region from being unmapped: a window bound to it, or a part exposed to peers. For messages.
 */
export interface RegionUser {
  /** How messages name it. */
  toString(): string;
}

/** The memory region of a mapping. */
export interface Region {
  readonly mr: VerbsMr;
  readonly range: Range;
  /** Objects that must be closed before the region. */
  readonly users: Set<RegionUser>;
}

/** The RDMA devices of one machine. Each is opened once and shared by its holders. */
export class RdmaContexts {
  readonly #platform: RdmaPlatform;
  readonly #open = new Map<string, RdmaContext>();
  readonly #turns = new Turns();

  constructor(platform: RdmaPlatform) {
    this.#platform = platform;
  }

  get verbs(): VerbsPort {
    return this.#platform.verbs;
  }

  /** Why RDMA is not available and what to install; `undefined` if it is. */
  get limitation(): string | undefined {
    return this.#platform.verbs.limitation;
  }

  /** The devices of this machine. Empty if RDMA is not available. */
  devices(): VerbsDevice[] {
    return this.limitation === undefined ? this.#platform.verbs.devices() : [];
  }

  /**
   * Opens the device, or shares it if it is open. The caller releases it by {@link RdmaContext.release}.
   *
   * @throws DmaError ENODEV if no device has that name, ENOTSUP if RDMA is not available, EACCES and ENOENT from its
   * character device
   */
  open(name: string): RdmaContext {
    const known = this.#open.get(name);
    if (known !== undefined && known.lost === undefined) {
      known.share();
      return known;
    }
    const context: RdmaContext = new RdmaContext(this.#platform, name, this.#turns, () => {
      if (this.#open.get(name) === context) this.#open.delete(name);
    });
    this.#open.set(name, context);
    return context;
  }
}

/** The link address is resolved: include/uapi/linux/if_arp.h. */
const ATF_COM = 2;

/** An open RDMA device. Made by `RdmaContexts.open`. */
export class RdmaContext {
  readonly platform: RdmaPlatform;
  readonly context: VerbsContext;
  readonly pd: VerbsPd;
  readonly attributes: VerbsDeviceAttributes;
  /** @internal Its limits, and how much of them is used. */
  readonly limits: Limits;
  /** The regions of the domain's mappings, by address. */
  readonly regions = new RangeMap<Region>();
  /** @internal Queue of calls that wait for a peer to be resolved. */
  readonly turns: Turns;
  /** @internal The device's part of the connection manager. */
  readonly cm: CmHub;
  readonly #listeners = new Set<(event: VerbsAsyncEvent) => void>();
  readonly #losses = new Set<(error: DmaError) => void>();
  readonly #watch: Watch;
  readonly #closed: () => void;
  #transport: VerbsDevice['transport'] | undefined;
  #holders = 1;
  #lost: DmaError | undefined;

  /** @internal */
  constructor(platform: RdmaPlatform, name: string, turns: Turns, closed: () => void) {
    const { verbs } = platform;
    const undo: (() => void)[] = [];
    try {
      this.context = verbs.open(name);
      undo.unshift(() => verbs.close(this.context));
      this.attributes = verbs.queryDevice(this.context);
      this.pd = verbs.allocatePd(this.context);
      undo.unshift(() => verbs.deallocatePd(this.pd));
      this.#watch = platform.readiness.watch(this.context.asyncFd, { readable: true }, () => this.#takeEvents());
      undo.unshift(() => this.#watch.close());
      // A program that waits for nothing else may exit.
      this.#watch.setRef(false);
    } catch (error) {
      throw withUndo(error, 'open', undoAll(undo));
    }
    this.platform = platform;
    this.turns = turns;
    this.limits = new Limits(name, this.attributes);
    this.cm = new CmHub(platform);
    this.#closed = closed;
  }

  /** The kernel's name of the device. */
  get name(): string {
    return this.context.name;
  }

  get verbs(): VerbsPort {
    return this.platform.verbs;
  }

  /** Why it is gone; `undefined` while it works. */
  get lost(): DmaError | undefined {
    return this.#lost;
  }

  /** Is it an iWARP device? Only the connection manager can connect its queue pairs. */
  get isIwarp(): boolean {
    this.#transport ??= this.verbs.devices().find(({ name }) => name === this.name)?.transport;
    return this.#transport === 'iwarp';
  }

  /** @internal Has the kernel resolved a port already: a local one, or a neighbour that has replied? */
  isNear(gid: string): boolean {
    if (this.verbs.gids(this.context).some((own) => own.gid === gid)) return true;
    const ipv4 = ipv4Of(gid);
    if (ipv4 === undefined) return false;
    const [, ...lines] = (this.platform.kernel.readText('/proc/net/arp') ?? '').split('\n');
    return lines.some((line) => {
      const [address, , flags] = line.split(/\s+/);
      return address === ipv4 && (Number(flags) & ATF_COM) !== 0;
    });
  }

  /** Does it support memory windows on its regions? */
  get hasWindows(): boolean {
    return this.attributes.maxMws > 0;
  }

  /** Calls `listener` for every event of the device, its ports and its queues. @returns removes the listener */
  onEvent(listener: (event: VerbsAsyncEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** Calls `listener` once when the device is gone; at once if it already is. @returns removes the listener */
  onLost(listener: (error: DmaError) => void): () => void {
    if (this.#lost !== undefined) listener(this.#lost);
    else this.#losses.add(listener);
    return () => void this.#losses.delete(listener);
  }

  /** The region that contains all of [va, va + length). @throws DmaError EINVAL if there is none */
  regionOf(range: Range, operation: string): Region {
    const region = this.regions.at(range.start);
    if (region?.range.covers(range) === true) return region;
    const reason =
      region === undefined ? 'it is not mapped' : `it extends past the end of the mapping ${region.range.toString()}`;
    const hint = 'map it first, as one range: device.dmaMap';
    throw new DmaError({ code: 'EINVAL', operation, range, device: this.name, reason, hint });
  }

  /** @internal Adds a holder. */
  share(): void {
    this.#holders++;
  }

  /** Removes a holder; the last one closes the device. @throws the first failure, after all steps were tried */
  release(): void {
    if (--this.#holders > 0) return;
    this.#closed();
    this.#listeners.clear();
    this.#losses.clear();
    const { verbs } = this.platform;
    const errors = undoAll([
      () => this.#watch.close(),
      () => verbs.deallocatePd(this.pd),
      () => verbs.close(this.context),
    ]);
    throwFirst(errors, 'close');
  }

  #takeEvents(): void {
    for (;;) {
      let event: VerbsAsyncEvent | undefined;
      try {
        event = this.verbs.nextAsyncEvent(this.context);
      } catch (cause) {
        this.#lose('reading its events failed', cause);
        return;
      }
      if (event === undefined) return;
      for (const listener of [...this.#listeners]) listener(event);
      if (event.name === 'DEVICE_FATAL') this.#lose('it was removed, or failed permanently', undefined);
    }
  }

  #lose(reason: string, cause: unknown): void {
    if (this.#lost !== undefined) return;
    this.#lost = new DmaError({ code: 'ENODEV', operation: 'rdma', device: this.name, reason, cause });
    this.#watch.close();
    for (const listener of [...this.#losses]) listener(this.#lost);
    this.#losses.clear();
  }
}

shortForm(RdmaContext, 'RdmaContext', ({ name }) => ({ name }));

/** A key in hexadecimal, for messages. */
export function keyText(key: number): string {
  return hex(key);
}
