/**
 * An RDMA device as the verbs driver presents it: its attributes, its queues, and regions in addition to the mappings.
 */
import type { DmaAccess, RemoteAccess } from '../dma/address-space.js';
import type { Domain } from '../dma/domain.js';
import { lostDevice } from '../dma/mapping.js';
import { mustBeFunction, mustBeObject, mustBeOneOf, mustBeWhole, optionsOf, reading, type Shape } from '../check.js';
import { ACCESSES, REMOTES } from '../dma/plan.js';
import { DmaError, invalid, undoAll, withUndo } from '../errors.js';
import {
  IBV_ACCESS_LOCAL_WRITE,
  IBV_ACCESS_ON_DEMAND,
  IBV_ADVISE_MR_ADVICE_PREFETCH,
  IBV_ADVISE_MR_ADVICE_PREFETCH_WRITE,
} from '../platform/rdma/abi/memory.js';
import { IBV_ODP_SUPPORT_IMPLICIT } from '../platform/rdma/abi/devices.js';
import type {
  VerbsAh,
  VerbsAsyncEvent,
  VerbsDevice,
  VerbsDeviceAttributes,
  VerbsGid,
  VerbsMr,
  VerbsPath,
  VerbsPortAttributes,
} from '../platform/rdma/verbs-types.js';
import { Range } from '../ranges.js';
import { hex, isAddress, type Va } from '../units.js';
import { regionFlags } from './access.js';
import { AddressHandle } from './address-handle.js';
import { CompletionQueue, type CompletionQueueOptions } from './completion-queue.js';
import type { RdmaContext } from './context.js';
import { ExtraRegion } from './extra-region.js';
import { ExtraRegions } from './extra-regions.js';
import {
  connectByManager,
  RdmaListener,
  type CmConnectOptions,
  type CmListenOptions,
  type CmServe,
  type RdmaConnection,
} from './connect-cm.js';
import { chooseGid, ipv4Of, isGid } from './gid.js';
import { MemoryWindow } from './memory-window.js';
import { QueuePair } from './queue-pair.js';
import { pathTo } from './queue-pair-connect.js';
import { queuePairOptions, type QueuePairAddress, type QueuePairOptions } from './queue-pair-options.js';
import { shortForm } from '../short-form.js';
import { show } from '../show.js';
import { rangeOf, type MemoryPart } from '../memory/part.js';
import type { Shares } from '../memory/shared/shares.js';
import { STAYS } from '../stays.js';

/** A port and its current attributes. */
export interface RdmaPort extends VerbsPortAttributes {
  /** from 1 */
  readonly number: number;
}

/** An address of a port. */
export interface RdmaGid extends VerbsGid {
  /** The IPv4 address in it; undefined if it is none */
  readonly ipv4: string | undefined;
}

/** Options of `registerDmabuf`. */
export interface DmabufOptions {
  /** Its descriptor, needed only during the call */
  readonly fd: number;
  /** byte offset into it. Default 0. */
  readonly offset?: number;
  /** bytes */
  readonly length: number;
  /** The address of its first byte in requests; same offset in its page as `offset`. Default: `offset`. */
  readonly address?: number;
  /** Default `read-write`. */
  readonly access?: DmaAccess;
  /** What peers may do. Default `none`. */
  readonly remote?: RemoteAccess;
}

const PORT_OPTIONS = { port: 'number', gidIndex: 'number' } as const;
const PREFETCH_OPTIONS = { write: 'boolean', wait: 'boolean' } as const;
const DMABUF_OPTIONS: Shape<DmabufOptions> = {
  fd: 'number',
  offset: 'number',
  length: 'number',
  address: 'number',
  access: ACCESSES,
  remote: REMOTES,
};

/** An RDMA device. Returned by `device.use(verbsDriver)`; it is closed with the device. */
export class RdmaDevice {
  /** @internal */
  readonly stays = STAYS;
  /** The kernel's name, such as `mlx5_0`. */
  readonly name: string;
  /** Its features and limits. */
  readonly attributes: VerbsDeviceAttributes;
  /** @internal */
  readonly rdma: RdmaContext;
  readonly #device: string;
  readonly #domain: Domain;
  readonly #shares: Shares | undefined;
  readonly #pairs = new Set<QueuePair>();
  readonly #queues = new Set<CompletionQueue>();
  /** Open windows, regions and address handles. */
  readonly #others = new Set<Disposable>();
  readonly #regions = new ExtraRegions();
  #closed = false;
  /** Objects that another thread is creating. */
  readonly #making = new Set<Promise<unknown>>();
  readonly #ends: (() => void)[];
  readonly #listeners = new Set<(event: VerbsAsyncEvent) => void>();

  /** @internal */
  constructor(
    rdma: RdmaContext,
    { name, domain, shares }: { readonly name: string; readonly domain: Domain; readonly shares?: Shares },
  ) {
    this.rdma = rdma;
    this.name = rdma.name;
    this.attributes = rdma.attributes;
    this.#device = name;
    this.#domain = domain;
    this.#shares = shares;
    this.#ends = [
      rdma.onEvent((event) => this.#heard(event)),
      rdma.onLost((error) => {
        const lost = lostDevice('rdma', name, error);
        for (const queue of this.#queues) queue.fail(lost);
      }),
    ];
  }

  /** The device's entry in the list of RDMA devices. */
  get facts(): VerbsDevice | undefined {
    return this.rdma.verbs.devices().find(({ name }) => name === this.name);
  }

  /** Queries its ports. */
  ports(): RdmaPort[] {
    this.#mustBeThere('ports');
    const { verbs, context } = this.rdma;
    return Array.from({ length: this.attributes.ports }, (_, index) => ({
      number: index + 1,
      ...verbs.queryPort(context, index + 1),
    }));
  }

  /** Queries the addresses of its ports. */
  gids(): RdmaGid[] {
    this.#mustBeThere('gids');
    const { verbs, context } = this.rdma;
    return verbs.gids(context).map((gid) => ({ ...gid, ipv4: ipv4Of(gid.gid) }));
  }

  /** Calls `listener` for every event of the device, its ports and its queues. @returns disposing it removes the listener */
  onEvent(listener: (event: VerbsAsyncEvent) => void): Disposable {
    mustBeFunction(listener, 'a listener', 'onEvent');
    this.#listeners.add(listener);
    return { [Symbol.dispose]: () => void this.#listeners.delete(listener) };
  }

  /**
   * Creates a completion queue. @throws DmaError EINVAL for options that the device does not support; ENOMEM; as
   * `VerbsPort.createCq`
   */
  createCompletionQueue(options?: CompletionQueueOptions): CompletionQueue {
    this.#mustBeThere('createCompletionQueue');
    const queue = new CompletionQueue(this.rdma, options, (closed) => this.#queues.delete(closed));
    this.#queues.add(queue);
    return queue;
  }

  /**
   * Creates a queue pair. Connect it if it is not for datagrams ({@link QueuePair.connect}; on iWARP devices {@link
   * RdmaDevice.connect}). Receives can be posted at once.
   *
   * @throws DmaError EINVAL for options that the device does not support; ENOSPC if a completion queue has no room for
   * it, or the device has no more queue pairs; ENODEV for a port without an address; ENOMEM; as `VerbsPort.createQp`
   */
  createQueuePair(options?: QueuePairOptions): QueuePair {
    const operation = 'createQueuePair';
    this.#mustBeThere(operation);
    const checked = queuePairOptions(options, this.rdma, operation);
    const { port, portAttributes, gid } = this.#portOf(checked, operation);
    const { sends, receives } = checked;
    const owned: CompletionQueue[] = [];
    try {
      const own = (entries: number): CompletionQueue => {
        const queue = this.createCompletionQueue({ entries });
        owned.push(queue);
        return queue;
      };
      const completions = checked.completions ?? own(sends + receives);
      const receiveCompletions = checked.receiveCompletions ?? completions;
      const pair = new QueuePair(
        {
          rdma: this.rdma,
          device: this.#device,
          domain: this.#domain,
          shares: this.#shares,
          port,
          portAttributes,
          gid,
          completions,
          receiveCompletions,
          owned,
          closed: (closed) => this.#pairs.delete(closed),
        },
        checked,
      );
      this.#pairs.add(pair);
      return pair;
    } catch (error) {
      throw withUndo(error, operation, undoAll(owned.map((queue) => () => queue.close())));
    }
  }

  /**
   * Connects a queue pair to a listening peer, by the connection manager.
   *
   * @returns when both sides are ready
   * @throws DmaError EINVAL if the queue pair can not be connected (any more); ENODEV if another device, or none, leads
   * to the address; ECONNREFUSED if nobody listens there, or the peer refused; ETIMEDOUT; ENOTSUP without librdmacm;
   * ENOENT and EACCES from `/dev/infiniband/rdma_cm`. After an error the queue pair can only be closed.
   */
  async connect(pair: QueuePair, options: CmConnectOptions): Promise<RdmaConnection> {
    this.#mustBeThere('connect');
    return connectByManager(this.rdma, pair, options);
  }

  /**
   * Listens for peers that call {@link RdmaDevice.connect}.
   *
   * @param serve called with each request, to accept or reject it
   * @throws DmaError EADDRINUSE; ENODEV if the address is not in this device's network; as {@link RdmaDevice.connect}
   */
  listen(options: CmListenOptions, serve: CmServe): RdmaListener {
    this.#mustBeThere('listen');
    const closed = (listener: RdmaListener) => void this.#others.delete(listener);
    return this.#keep(new RdmaListener(this.rdma, options, serve, closed));
  }

  /**
   * The path to another port, for datagrams. @throws DmaError ENOSPC if the device has no more; as `VerbsPort.createAh`
   */
  createAddress(
    peer: Pick<QueuePairAddress, 'gid' | 'lid'>,
    options?: Pick<QueuePairOptions, 'port' | 'gidIndex'>,
  ): AddressHandle {
    const { limits, verbs, pd } = this.rdma;
    const path = this.#pathTo(peer, options);
    return this.#address(limits.make('addresses', 'createAddress', () => verbs.createAh(pd, path)));
  }

  /**
   * Like {@link RdmaDevice.createAddress}, but does not block the event loop while the kernel resolves the port, which
   * takes a second if there is no reply. Only one such call runs at a time.
   */
  async createAddressAsync(
    peer: Pick<QueuePairAddress, 'gid' | 'lid'>,
    options?: Pick<QueuePairOptions, 'port' | 'gidIndex'>,
  ): Promise<AddressHandle> {
    const { rdma } = this;
    const { limits, verbs, pd, turns } = rdma;
    const path = this.#pathTo(peer, options);
    const work = async (): Promise<AddressHandle> => {
      this.#mustBeThere('createAddress');
      if (this.#closed) throw invalid('createAddress', 'the device was removed', { device: this.#device });
      const making = limits.makeAsync('addresses', 'createAddress', () => verbs.createAhAsync(pd, path));
      this.#making.add(making);
      try {
        return this.#address(await making);
      } finally {
        this.#making.delete(making);
      }
    };
    return rdma.isNear(peer.gid) ? work() : turns.run('', work);
  }

  #address(handle: VerbsAh): AddressHandle {
    return this.#keep(new AddressHandle(this.rdma, handle, (closed) => this.#others.delete(closed)));
  }

  #pathTo(
    peer: Pick<QueuePairAddress, 'gid' | 'lid'>,
    options: Pick<QueuePairOptions, 'port' | 'gidIndex'> | undefined,
  ): VerbsPath {
    const operation = 'createAddress';
    this.#mustBeThere(operation);
    const { gid, lid } = reading(operation, 'the address of the peer', () => {
      mustBeObject(peer, 'addresses', operation);
      return { gid: peer.gid, lid: peer.lid };
    });
    mustBeWhole(lid, 0, 65535, 'lid', operation);
    if (typeof gid !== 'string' || !isGid(gid)) throw invalid(operation, `${show(gid)} is not a GID`);
    return pathTo(this.#portOf(optionsOf(options, PORT_OPTIONS, operation), operation), { gid, lid });
  }

  /**
   * Creates a memory window; `QueuePair.bind` binds it.
   *
   * @param type 1 (default) or 2, as in the InfiniBand specification
   * @throws DmaError ENOTSUP if the device has no windows, ENOMEM
   */
  createWindow(type: 1 | 2 = 1): MemoryWindow {
    mustBeWhole(type, 1, 2, 'the type of a window', 'createWindow');
    this.#mustBeThere('createWindow');
    if (!this.rdma.hasWindows)
      throw new DmaError({
        code: 'ENOTSUP',
        operation: 'createWindow',
        device: this.#device,
        reason: 'it does not support memory windows',
      });
    return this.#keep(new MemoryWindow(this.rdma, type, (closed) => this.#others.delete(closed)));
  }

  /**
   * Gives peers access to a part of a mapping, by a separate rkey; also to memory that the library maps for every
   * device, such as heaps. The mapping can not be unmapped before this is unregistered.
   *
   * @param part inside one mapping
   * @throws DmaError EINVAL if it is not mapped, or peers would get write access that the device does not have; as
   * `Device.dmaMap`
   */
  expose(part: MemoryPart, remote: Exclude<RemoteAccess, 'none'>): ExtraRegion {
    const operation = 'expose';
    this.#mustBeThere(operation);
    const range = rangeOf(part, operation);
    mustBeOneOf(remote, ACCESSES, 'remote access', operation);
    this.rdma.limits.mustBeRegion(range.length, operation);
    const within = this.rdma.regionOf(range, operation);
    const entry = this.#domain.explain(Number(range.start), range.length, remote === 'read' ? 'read' : 'write');
    if (entry.kind !== 'mapped') throw invalid(operation, entry.text, { range, device: this.#device });
    const { verbs, pd, attributes } = this.rdma;
    const access = regionFlags(remote === 'read' ? 'read' : 'read-write', { remote, paging: 'pinned' }, attributes);
    return this.#region({
      mr: this.#registered(() => verbs.registerMemory(pd, { va: range.start, length: range.length, access })),
      range,
      within,
      label: 'an exposed part',
    });
  }

  /**
   * Registers a dma-buf: memory of another device, or of udmabuf, which need not be mapped here.
   *
   * @throws DmaError EINVAL; ENOTSUP if the library, kernel or device does not support it; as
   * `VerbsPort.registerDmabuf`
   */
  registerDmabuf(options: DmabufOptions): ExtraRegion {
    const operation = 'registerDmabuf';
    this.#mustBeThere(operation);
    const given = optionsOf(options, DMABUF_OPTIONS, operation);
    const { fd, offset = 0, length = NaN, address = offset, access = 'read-write', remote = 'none' } = given;
    mustBeWhole(fd, 0, 2 ** 31 - 1, 'fd', operation);
    const range = new Range(address, length, operation);
    new Range(offset, length, operation);
    this.rdma.limits.mustBeRegion(length, operation);
    if (access === 'read' && remote !== 'none' && remote !== 'read')
      throw invalid('registerDmabuf', 'peers can not write what the device may only read', { device: this.#device });
    const { verbs, pd, attributes } = this.rdma;
    const flags = regionFlags(access, { remote, paging: 'pinned' }, { ...attributes, maxMws: 0 });
    const mr = this.#registered(() => verbs.registerDmabuf(pd, { fd, offset, length, iova: address, access: flags }));
    return this.#region({ mr, range, label: 'a dma-buf' });
  }

  /**
   * Registers all memory of this process, present and future; the device fetches pages as needed (implicit on-demand
   * paging). Its lkey is valid for every address.
   *
   * @throws DmaError ENOTSUP if the device does not support it
   */
  registerEverything(access: DmaAccess = 'read-write'): ExtraRegion {
    mustBeOneOf(access, ACCESSES, 'access', 'registerEverything');
    this.#mustBeThere('registerEverything');
    const { verbs, pd, attributes } = this.rdma;
    if ((attributes.odp.general & IBV_ODP_SUPPORT_IMPLICIT) === 0)
      throw new DmaError({
        code: 'ENOTSUP',
        operation: 'registerEverything',
        device: this.#device,
        reason: 'it does not support implicit on-demand paging',
      });
    const flags = IBV_ACCESS_ON_DEMAND + (access === 'read' ? 0 : IBV_ACCESS_LOCAL_WRITE);
    const mr = this.#registered(() => verbs.registerMemory(pd, { va: 0 as Va, length: Infinity, access: flags }));
    return this.#region({ mr, range: undefined, label: 'all memory' });
  }

  /**
   * Lets the device fetch pages of a mapping with on-demand paging in advance.
   *
   * @param options.write fetch for writing. Default true. @param options.wait return when they are present? Default
   * true.
   * @throws DmaError EINVAL if the part is not inside one such mapping; as `VerbsPort.adviseMemory`
   */
  prefetch(part: MemoryPart, options?: { readonly write?: boolean; readonly wait?: boolean }): void {
    this.#mustBeThere('prefetch');
    const range = rangeOf(part, 'prefetch');
    const { write = true, wait = true } = optionsOf(options, PREFETCH_OPTIONS, 'prefetch');
    const { mr } = this.rdma.regionOf(range, 'prefetch');
    const advice = write ? IBV_ADVISE_MR_ADVICE_PREFETCH_WRITE : IBV_ADVISE_MR_ADVICE_PREFETCH;
    this.rdma.verbs.adviseMemory(mr, range.start, range.length, advice, wait);
  }

  /**
   * Explains why a peer was refused access to memory of this side: the answer to its question.
   *
   * @param access what the peer tried
   */
  explainPeer(
    memory: { readonly address: number; readonly length: number; readonly rkey: number },
    access: DmaAccess,
  ): string {
    const operation = 'explainPeer';
    mustBeOneOf(access, ACCESSES, 'access', operation);
    const { address, length, rkey } = reading(operation, 'the memory', () => {
      mustBeObject(memory, 'addresses of peers', operation);
      return { address: memory.address, length: memory.length, rkey: memory.rkey };
    });
    mustBeWhole(rkey, 0, 2 ** 32 - 1, 'rkey', operation);
    if (!isAddress(address) || !isAddress(length) || length === 0 || !isAddress(address + length))
      return `${show(length)} bytes at ${show(address)} is not a range of memory`;
    const known = this.#regions.explain(address, length, rkey);
    if (known !== undefined) return known;
    const mapping = [...this.#domain.mappings()].find(({ live, range }) => live && range.contains(address));
    if (mapping !== undefined && mapping.rkey !== rkey)
      return `${hex(address)} does not have rkey 0x${rkey.toString(16)}: that mapping was unmapped, or never existed here`;
    return this.#domain.explain(address, length, access, 'peer').text;
  }

  /** @internal @throws DmaError EBUSY, naming it, while another thread has one of its queue pairs */
  mustBeFree(operation: string): void {
    for (const pair of this.#pairs) pair.mustBeFree(operation);
  }

  /** @internal Closes everything created from it, in a valid order. @returns what failed */
  async close(): Promise<unknown[]> {
    this.#closed = true;
    const close = (each: Disposable) => () => each[Symbol.dispose]();
    const pairs = [...this.#pairs].reverse();
    const errors = undoAll(pairs.map(close));
    await Promise.allSettled([...pairs.map(({ gone }) => gone), ...this.#making]);
    errors.push(
      ...undoAll([...[...this.#others].reverse().map(close), ...[...this.#queues].reverse().map(close), ...this.#ends]),
    );
    return errors;
  }

  #heard(event: VerbsAsyncEvent): void {
    if (event.cq !== undefined && event.name === 'CQ_ERR') {
      const queue = [...this.#queues].find(({ cq }) => cq === event.cq);
      const reason = `the device reported CQ_ERR: it has stopped, most often because more completions came than the ${queue?.entries ?? 0} that it holds`;
      const hint = 'make it with more entries, and post no more requests than its queue pairs were made for';
      queue?.fail(new DmaError({ code: 'EIO', operation: 'completion queue', device: this.#device, reason, hint }));
    }
    if (event.qp !== undefined && event.name.startsWith('QP_') && event.name !== 'QP_LAST_WQE_REACHED') {
      const pair = [...this.#pairs].find(({ qp }) => qp === event.qp);
      const code = event.name === 'QP_ACCESS_ERR' ? 'EACCES' : 'EIO';
      const reason = `the device reported ${event.name}`;
      pair?.stop(new DmaError({ code, operation: 'queue pair', device: this.#device, reason }));
    }
    for (const listener of [...this.#listeners]) listener(event);
  }

  #region(parts: Omit<ConstructorParameters<typeof ExtraRegion>[1], 'closed'>): ExtraRegion {
    const region = new ExtraRegion(this.rdma, {
      ...parts,
      closed: (closed) => {
        this.#others.delete(closed);
        this.#regions.closed(closed);
      },
    });
    this.#regions.add(region);
    return this.#keep(region);
  }

  /** Registers a region in addition to the mappings. Errors for lack of resources have the figures. */
  #registered(register: () => VerbsMr): VerbsMr {
    const { limits } = this.rdma;
    const mr = limits.explained('regions', register);
    limits.add('regions');
    return mr;
  }

  #keep<T extends Disposable>(thing: T): T {
    this.#others.add(thing);
    return thing;
  }

  #mustBeThere(operation: string): void {
    const { lost } = this.rdma;
    if (lost !== undefined) throw lostDevice(operation, this.#device, lost);
  }

  #portOf(
    { port, gidIndex }: Pick<QueuePairOptions, 'port' | 'gidIndex'>,
    operation: string,
  ): { port: number; portAttributes: VerbsPortAttributes; gid: VerbsGid | undefined } {
    const ports = this.ports();
    const chosen = port === undefined ? (ports.find(({ state }) => state === 'active') ?? ports[0]) : ports[port - 1];
    const refuse = (code: 'EINVAL' | 'ENODEV', reason: string, hint?: string): DmaError =>
      new DmaError({ code, operation, device: this.#device, reason, hint });
    if (chosen === undefined) throw refuse('EINVAL', `it has no port ${port ?? 1}; its ports are 1 to ${ports.length}`);
    const gids = this.gids().filter((gid) => gid.port === chosen.number);
    const gid = gidIndex === undefined ? chooseGid(gids, chosen.number) : gids.find(({ index }) => index === gidIndex);
    if (gid === undefined && gidIndex !== undefined) {
      const there = gids.map(({ index }) => index).join(', ');
      throw refuse('EINVAL', `port ${chosen.number} has no address of index ${gidIndex}; there are ${there}`);
    }
    if (gid === undefined && chosen.linkLayer === 'ethernet' && !this.rdma.isIwarp)
      throw refuse(
        'ENODEV',
        `port ${chosen.number} has no address`,
        'give its network interface one, and bring that up',
      );
    return { port: chosen.number, portAttributes: chosen, gid };
  }
}

shortForm(RdmaDevice, 'RdmaDevice', ({ name }) => ({ name }));
