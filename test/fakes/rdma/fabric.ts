/**
 * For tests: RDMA emulated in this process. A fabric has hosts; each is a platform with emulated verbs: regions with keys,
 * connected queue pairs and datagrams that move real bytes, protection errors, events, and the loss of devices. A request is
 * carried out when it is posted; if it needs a receive of the peer, it is carried out when that receive is posted.
 */
import { DmaError, invalid, type ErrorCode } from '../../../src/errors.js';
import type { Platform } from '../../../src/platform/ports.js';
import * as memoryAbi from '../../../src/platform/rdma/abi/memory.js';
import { IBV_QPS_ERR, IBV_QPS_RESET, IBV_QPS_RTS } from '../../../src/platform/rdma/abi/queues.js';
import * as abi from '../../../src/platform/rdma/abi/requests.js';
import { checkSlots } from '../../../src/platform/rdma/verbs-checks.js';
import type { VerbsPort } from '../../../src/platform/rdma/verbs-port.js';
import type { VerbsAsyncEvent, VerbsPath } from '../../../src/platform/rdma/verbs-types.js';
import { fakeRdmaCm, type CmListeners } from './connection-manager.js';
import { attributesOf, checkAccess, fakeDevice, gidsOf, mayBecome, PORT, RESET } from './device.js';
import { hostMemory } from './host-memory.js';
import {
  Signal,
  tell,
  type FakeChannel,
  type FakeContext,
  type FakeCq,
  type FakeDeviceOptions,
  type FakeAh,
  type FakeMr,
  type FakeMw,
  type FakePd,
  type FakeQp,
  type Send,
} from './objects.js';
import { NO_SEND, readSegments, readSend, wide, writeCompletions } from './requests.js';
import { transfersOf } from './transfers.js';

export type { FakeDeviceOptions } from './objects.js';

/** A platform with emulated verbs. */
export interface FakeRdmaPlatform extends Platform {
  readonly verbs: VerbsPort;
  /** One line for each open object of its devices. */
  verbsLeaks(): string[];
  /** The device fails for good; what is open on it can only be closed. */
  unplug(name: string): void;
  /** The device reports an event of its port. */
  portEvent(name: string, event: 'PORT_ERR' | 'PORT_ACTIVE'): void;
}

/** What connects the hosts. */
export class Fabric {
  /** All queue pairs, by GID and number. */
  readonly pairs = new Map<string, FakeQp>();
  /** The listeners of the connection manager. */
  readonly listeners: CmListeners = new Map();
  /** The addresses of all ports. */
  readonly gids = new Set<string>();
  /** How long the kernel looks for a port that is not there, in milliseconds, before it says ETIMEDOUT. Default: it does not look. */
  resolveMs: number | undefined;
  /** Looks of that kind that are under way on other threads, and the most that were. */
  looking = 0;
  mostLooking = 0;
  #next = 1;

  /** A new host: `base` with emulated verbs in place of its own. */
  host(base: Platform, devices: readonly FakeDeviceOptions[]): FakeRdmaPlatform {
    return fakeHost(this, base, devices);
  }

  /** A unique number: for addresses of handles, keys, numbers of queue pairs. */
  number(): number {
    return this.#next++;
  }
}

/** Descriptors of signals begin here. */
const FIRST_FD = 1_000_000;

function fakeHost(fabric: Fabric, base: Platform, list: readonly FakeDeviceOptions[]): FakeRdmaPlatform {
  const devices = list.map((options) => fakeDevice(fabric.number(), options));
  const signals = new Map<number, Signal>();
  /** What is open, by its address. */
  const open = new Map<number, { readonly kind: string; address: number }>();

  const fail = (code: ErrorCode, operation: string, reason: string): never => {
    throw new DmaError({ code, operation, reason });
  };
  for (const device of devices) for (const { gid } of gidsOf(device)) fabric.gids.add(gid);
  /** How long nobody answers at the end of a path; `undefined` when somebody does at once. */
  const silence = (path: VerbsPath | undefined): number | undefined =>
    path?.route === undefined || fabric.gids.has(path.route.gid) ? undefined : fabric.resolveMs;
  const resolve = (path: VerbsPath | undefined, operation: string): void => {
    const ms = silence(path);
    if (ms === undefined) return;
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
    fail('ETIMEDOUT', operation, 'nobody has that address');
  };
  const resolveLater = async (path: VerbsPath | undefined, operation: string): Promise<void> => {
    const ms = silence(path);
    fabric.mostLooking = Math.max(fabric.mostLooking, ++fabric.looking);
    try {
      await new Promise((done) => (ms === undefined ? setImmediate(done) : setTimeout(done, ms)));
      if (ms !== undefined) fail('ETIMEDOUT', operation, 'nobody has that address');
    } finally {
      fabric.looking--;
    }
  };
  const make = <T extends object>(kind: string, parts: T): T & { address: number } => {
    const handle = { ...parts, address: fabric.number() * 64 };
    open.set(handle.address, Object.assign(handle, { kind }));
    return handle;
  };
  const need = <T extends { address: number }>(handle: unknown, operation: string): T => {
    const own = handle as T;
    if (own.address === 0 || open.get(own.address) !== handle) fail('EINVAL', operation, 'this handle is not open');
    return own;
  };
  const alive = (context: FakeContext, operation: string): void => {
    if (context.device.gone) fail('EIO', operation, 'the device is gone');
  };
  const drop = (handle: { address: number }): void => {
    open.delete(handle.address);
    handle.address = 0;
  };
  const signal = (isReady: () => boolean): Signal => {
    const made = new Signal(FIRST_FD + fabric.number(), isReady);
    signals.set(made.fd, made);
    return made;
  };

  const { memory, words, view } = hostMemory(base);
  const { complete, received, stop, bind, run } = transfersOf(fabric.pairs, open);

  const verbs: VerbsPort = {
    limitation: undefined,
    devices: () => devices.filter(({ gone }) => !gone).map(({ facts }) => facts),
    open(name) {
      const device =
        devices.find(({ options, gone }) => options.name === name && !gone) ??
        fail('ENODEV', 'ibv_open_device', `there is no ${name}`);
      const events: VerbsAsyncEvent[] = [];
      const asyncSignal = signal(() => events.length > 0);
      const context: FakeContext = make('context', {
        name,
        asyncFd: asyncSignal.fd,
        vectors: 2,
        device,
        events,
        signal: asyncSignal,
        children: 0,
      });
      device.contexts.add(context);
      return context;
    },
    close(handle) {
      const context = need<FakeContext>(handle, 'ibv_close_device');
      if (context.children > 0) fail('EBUSY', 'ibv_close_device', `${context.children} things of it are open`);
      context.device.contexts.delete(context);
      drop(context);
    },
    queryDevice(handle) {
      const { device } = need<FakeContext>(handle, 'ibv_query_device');
      return attributesOf(device);
    },
    queryPort(handle, port) {
      const context = need<FakeContext>(handle, 'ibv_query_port');
      alive(context, 'ibv_query_port');
      if (port !== 1) fail('EINVAL', 'ibv_query_port', `there is no port ${port}`);
      return PORT;
    },
    gids: (handle) => gidsOf(need<FakeContext>(handle, 'ibv_query_gid_table').device),
    nextAsyncEvent: (handle) => need<FakeContext>(handle, 'ibv_get_async_event').events.shift(),

    allocatePd(handle) {
      const context = need<FakeContext>(handle, 'ibv_alloc_pd');
      alive(context, 'ibv_alloc_pd');
      context.children++;
      return make('pd', { context, children: 0 });
    },
    deallocatePd(handle) {
      const pd = need<FakePd>(handle, 'ibv_dealloc_pd');
      if (pd.children > 0) fail('EBUSY', 'ibv_dealloc_pd', `${pd.children} things of it are open`);
      pd.context.children--;
      drop(pd);
    },

    registerMemory(handle, { va, length, access, iova = va }) {
      const pd = need<FakePd>(handle, 'ibv_reg_mr');
      const { device } = pd.context;
      alive(pd.context, 'ibv_reg_mr');
      checkAccess(device, access, 'ibv_reg_mr');
      if (device.mrs.size >= (device.options.maxMrs ?? 1000))
        fail('ENOMEM', 'ibv_reg_mr', 'the device has no region left');
      if (length === Infinity) {
        if ((access & memoryAbi.IBV_ACCESS_ON_DEMAND) === 0) fail('EINVAL', 'ibv_reg_mr', 'not on demand');
        return region(
          pd,
          0,
          2 ** 53,
          access,
          (offset, count) => {
            const part = view(offset, count);
            return new Uint8Array(part.buffer, part.offset, count);
          },
          () => undefined,
        );
      }
      if (base.memory.protection(va, length) === 'none') fail('EFAULT', 'ibv_reg_mr', 'the memory is not mapped');
      const { buffer, offset, release } = view(va, length);
      return region(pd, iova, length, access, (at, count) => new Uint8Array(buffer, offset + at, count), release);
    },
    registerDmabuf(handle, { fd, offset, length, iova, access }) {
      const pd = need<FakePd>(handle, 'ibv_reg_dmabuf_mr');
      checkAccess(pd.context.device, access, 'ibv_reg_dmabuf_mr');
      const size = Math.ceil((offset + length) / 4096) * 4096;
      const va = base.memory.map({ fd, length: size });
      const whole = base.memory.view(va, size);
      return region(
        pd,
        iova,
        length,
        access,
        (at, count) => new Uint8Array(whole, offset + at, count),
        () => {
          base.memory.detach(whole);
          base.memory.unmap(va, size);
        },
      );
    },
    async registerMemoryAsync(handle, options) {
      await new Promise((resolve) => setImmediate(resolve));
      return verbs.registerMemory(handle, options);
    },
    async deregisterMemoryAsync(handle) {
      await new Promise((resolve) => setImmediate(resolve));
      verbs.deregisterMemory(handle);
    },
    deregisterMemory(handle) {
      const mr = need<FakeMr>(handle, 'ibv_dereg_mr');
      if (mr.bound > 0) fail('EBUSY', 'ibv_dereg_mr', 'a window is bound to it');
      mr.pd.context.device.mrs.delete(mr.lkey);
      mr.pd.children--;
      mr.release();
      drop(mr);
    },
    adviseMemory(handle) {
      const mr = need<FakeMr>(handle, 'ibv_advise_mr');
      if ((mr.access & memoryAbi.IBV_ACCESS_ON_DEMAND) === 0)
        fail('EINVAL', 'ibv_advise_mr', 'it is not paged on demand');
    },

    allocateMw(handle, type) {
      const pd = need<FakePd>(handle, 'ibv_alloc_mw');
      alive(pd.context, 'ibv_alloc_mw');
      pd.children++;
      return make<Omit<FakeMw, 'address'>>('mw', { pd, type, rkey: fabric.number() * 256, target: undefined });
    },
    deallocateMw(handle) {
      const mw = need<FakeMw>(handle, 'ibv_dealloc_mw');
      bind(mw.pd.context.device, mw, undefined);
      mw.pd.children--;
      drop(mw);
    },
    bindMw(handle, window, { mr, va, length, access, id, flags }) {
      const qp = need<FakeQp>(handle, 'ibv_bind_mw');
      const mw = need<FakeMw>(window, 'ibv_bind_mw');
      const rkey = ((mw.rkey & ~0xff) | ((mw.rkey + 1) & 0xff)) >>> 0;
      const target = { mw: mw.address, rkey, mr: mr.address, start: va, length, access };
      enqueue(qp, { ...NO_SEND, id, flags, opcode: abi.IBV_WR_BIND_MW, window: target });
      return rkey;
    },

    createChannel(handle) {
      const context = need<FakeContext>(handle, 'ibv_create_comp_channel');
      alive(context, 'ibv_create_comp_channel');
      context.children++;
      const events: FakeCq[] = [];
      const channelSignal = signal(() => events.length > 0);
      return make('channel', { context, fd: channelSignal.fd, events, signal: channelSignal, children: 0 });
    },
    destroyChannel(handle) {
      const channel = need<FakeChannel>(handle, 'ibv_destroy_comp_channel');
      if (channel.children > 0) fail('EBUSY', 'ibv_destroy_comp_channel', 'a completion queue uses it');
      channel.context.children--;
      signals.delete(channel.fd);
      drop(channel);
    },
    nextCqEvent: (handle) => need<FakeChannel>(handle, 'ibv_get_cq_event').events.shift(),

    createCq(handle, entries, with_, vector = 0) {
      const context = need<FakeContext>(handle, 'ibv_create_cq');
      alive(context, 'ibv_create_cq');
      if (entries < 1 || entries > 32767 || vector >= context.vectors)
        fail('EINVAL', 'ibv_create_cq', 'the device has no such queue');
      const channel = with_ === undefined ? undefined : need<FakeChannel>(with_, 'ibv_create_cq');
      context.children++;
      if (channel !== undefined) channel.children++;
      return make<Omit<FakeCq, 'address'>>('cq', { context, channel, entries, done: [], armed: false, children: 0 });
    },
    resizeCq(handle, entries) {
      need<FakeCq>(handle, 'ibv_resize_cq').entries = entries;
    },
    destroyCq(handle) {
      const cq = need<FakeCq>(handle, 'ibv_destroy_cq');
      if (cq.children > 0) fail('EBUSY', 'ibv_destroy_cq', 'a queue pair uses it');
      cq.context.children--;
      if (cq.channel !== undefined) {
        cq.channel.children--;
        cq.channel.events.splice(0, cq.channel.events.length, ...cq.channel.events.filter((event) => event !== cq));
      }
      drop(cq);
    },
    requestNotify(handle) {
      const cq = need<FakeCq>(handle, 'ibv_req_notify_cq');
      alive(cq.context, 'ibv_req_notify_cq');
      cq.armed = true;
    },
    pollCq(handle, into) {
      const cq = need<FakeCq>(handle, 'ibv_poll_cq');
      const count = Math.min(into.slots, cq.done.length);
      writeCompletions(words(into.address, into.slots * abi.WC.size, 'ibv_poll_cq'), cq.done.splice(0, count));
      return count;
    },

    createQp(handle, options) {
      const pd = need<FakePd>(handle, 'ibv_create_qp');
      alive(pd.context, 'ibv_create_qp');
      const sendCq = need<FakeCq>(options.sendCq, 'ibv_create_qp');
      const receiveCq = need<FakeCq>(options.receiveCq, 'ibv_create_qp');
      const { sends = 0, receives = 0, sendSges = 0, receiveSges = 0, inline = 0, signalAll = false, type } = options;
      if (sends > 16384 || receives > 16384) fail('EINVAL', 'ibv_create_qp', 'the device has no such queue');
      const number = fabric.number();
      const qp: FakeQp = make<Omit<FakeQp, 'address'>>('qp', {
        pd,
        type,
        number,
        sendCq,
        receiveCq,
        sends,
        receives,
        sendSges,
        receiveSges,
        inline,
        signalAll,
        status: RESET,
        peerGid: '',
        posted: [],
        todo: [],
      });
      for (const parent of [pd, sendCq, receiveCq]) parent.children++;
      fabric.pairs.set(`${pd.context.device.gid} ${number}`, qp);
      return qp;
    },
    modifyQp(handle, attributes) {
      const qp = need<FakeQp>(handle, 'ibv_modify_qp');
      alive(qp.pd.context, 'ibv_modify_qp');
      const { path, ...rest } = attributes;
      if (!mayBecome(qp, attributes))
        fail('EINVAL', 'ibv_modify_qp', `not from state ${qp.status.state} to ${String(attributes.state)}`);
      resolve(path, 'ibv_modify_qp');
      qp.status = { ...qp.status, ...rest };
      if (path?.route !== undefined) qp.peerGid = path.route.gid;
      if (attributes.state === IBV_QPS_ERR) stop(qp);
    },
    async modifyQpAsync(handle, attributes) {
      await resolveLater(attributes.path, 'ibv_modify_qp');
      verbs.modifyQp(handle, attributes);
    },
    queryQp: (handle) => need<FakeQp>(handle, 'ibv_query_qp').status,
    destroyQp(handle) {
      const qp = need<FakeQp>(handle, 'ibv_destroy_qp');
      for (const parent of [qp.pd, qp.sendCq, qp.receiveCq]) parent.children--;
      fabric.pairs.delete(`${qp.pd.context.device.gid} ${qp.number}`);
      drop(qp);
    },
    lend(handle) {
      const { address, pd, sendCq, receiveCq, number, type, sends, receives, sendSges, receiveSges, inline } =
        need<FakeQp>(handle, 'ibv_post_send');
      const addresses = { context: pd.context.address, pd: pd.address, qp: address };
      const queues = { sendCq: sendCq.address, receiveCq: receiveCq.address };
      const shape = { number, type, sends, receives, sendSges, receiveSges, inline };
      return { ...shape, device: pd.context.name, addresses: { ...addresses, ...queues } };
    },
    borrow: ({ addresses }) => need<FakeQp>(open.get(addresses.qp), 'ibv_post_send'),
    giveBack: () => undefined,
    createAh(handle, path) {
      const pd = need<FakePd>(handle, 'ibv_create_ah');
      alive(pd.context, 'ibv_create_ah');
      resolve(path, 'ibv_create_ah');
      pd.children++;
      return make('ah', { pd, path });
    },
    async createAhAsync(handle, path) {
      await resolveLater(path, 'ibv_create_ah');
      return verbs.createAh(handle, path);
    },
    destroyAh(handle) {
      const ah = need<FakeAh>(handle, 'ibv_destroy_ah');
      ah.pd.children--;
      drop(ah);
    },

    postSend(handle, requests, first, count) {
      checkSlots('ibv_post_send', requests, first, count);
      const qp = need<FakeQp>(handle, 'ibv_post_send');
      let taken = 0;
      for (; taken < count; taken++) {
        try {
          enqueue(qp, readSend(words, requests, (first + taken) % requests.slots, qp));
        } catch (error) {
          if (taken === 0) throw error;
          break;
        }
      }
      return taken;
    },
    postReceive(handle, requests, first, count) {
      checkSlots('ibv_post_recv', requests, first, count);
      const qp = need<FakeQp>(handle, 'ibv_post_recv');
      alive(qp.pd.context, 'ibv_post_recv');
      if (qp.status.state === IBV_QPS_RESET) fail('EINVAL', 'ibv_post_recv', 'the queue pair is not set up');
      let taken = 0;
      for (; taken < count && qp.posted.length < qp.receives; taken++) {
        const slot = (first + taken) % requests.slots;
        const request = words(requests.addressOf(slot), abi.RECV_WR.size, 'ibv_post_recv');
        const receive = {
          id: wide(request, abi.RECV_WR.wr_id),
          segments: readSegments(words, request, 'ibv_post_recv'),
        };
        if (qp.status.state === IBV_QPS_ERR) received(qp, receive.id, abi.IBV_WC_WR_FLUSH_ERR, {});
        else qp.posted.push(receive);
      }
      if (taken === 0 && count > 0) fail('ENOMEM', 'ibv_post_recv', 'the queue is full');
      for (const other of fabric.pairs.values())
        if (other.todo.length > 0 && other.status.peer === qp.number) run(other);
      return taken;
    },
  };

  const region = (
    pd: FakePd,
    start: number,
    length: number,
    access: number,
    bytes: FakeMr['bytes'],
    release: () => void,
  ): FakeMr => {
    const key = fabric.number() * 256;
    const mr: FakeMr = make('mr', { pd, lkey: key, rkey: key, start, length, access, bound: 0, bytes, release });
    pd.children++;
    pd.context.device.mrs.set(key, mr);
    return mr;
  };
  const enqueue = (qp: FakeQp, send: Send): void => {
    alive(qp.pd.context, 'ibv_post_send');
    if (qp.status.state === IBV_QPS_ERR) return complete(qp, send, abi.IBV_WC_WR_FLUSH_ERR);
    if (qp.status.state !== IBV_QPS_RTS) fail('EINVAL', 'ibv_post_send', 'the queue pair is not connected');
    if (qp.todo.length >= qp.sends) fail('ENOMEM', 'ibv_post_send', 'the queue is full');
    qp.todo.push(send);
    if (qp.todo.length === 1) run(qp);
  };

  return {
    ...base,
    memory,
    readiness: {
      watch: (fd, interest, onReady) => signals.get(fd)?.watch(onReady) ?? base.readiness.watch(fd, interest, onReady),
      wait: (fds, timeoutMs) => base.readiness.wait(fds, timeoutMs),
    },
    verbs,
    rdmaCm: fakeRdmaCm(
      fabric,
      devices.map(({ options: { name, ipv4, transport }, gid }) => ({
        name,
        ipv4,
        gid,
        isIwarp: transport === 'iwarp',
      })),
      signal,
    ),
    verbsLeaks: () => [...open.values()].map(({ kind, address }) => `${kind} ${address}`),
    unplug(name) {
      const device = devices.find(({ options }) => options.name === name);
      if (device === undefined) throw invalid('unplug', `there is no ${name}`);
      device.gone = true;
      for (const context of device.contexts)
        tell(context, { name: 'DEVICE_FATAL', type: 8, port: undefined, qp: undefined, cq: undefined });
    },
    portEvent(name, event) {
      for (const { options, contexts } of devices)
        if (options.name === name)
          for (const context of contexts)
            tell(context, { name: event, type: event === 'PORT_ERR' ? 10 : 9, port: 1, qp: undefined, cq: undefined });
    },
  };
}
