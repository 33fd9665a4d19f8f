/**
 * For tests: RDMA without RDMA. A fabric has hosts, each a platform whose verbs are emulated in this process: regions with
 * keys, connected queue pairs and datagrams that move real bytes, protection errors, events, devices that go. Requests are
 * done while they are posted; one that has to wait for a receive of the peer is done when that is posted.
 */
import { DmaError, invalid, type ErrorCode } from '../../../src/errors.js';
import type { Platform, Watch } from '../../../src/platform/ports.js';
import * as memoryAbi from '../../../src/platform/rdma/abi/memory.js';
import * as abi from '../../../src/platform/rdma/abi/requests.js';
import {
  IBV_DEVICE_MEM_WINDOW,
  IBV_ODP_SUPPORT,
  IBV_ODP_SUPPORT_IMPLICIT,
} from '../../../src/platform/rdma/abi/devices.js';
import {
  IBV_QPS_ERR,
  IBV_QPS_INIT,
  IBV_QPS_RESET,
  IBV_QPS_RTR,
  IBV_QPS_RTS,
} from '../../../src/platform/rdma/abi/queues.js';
import type { VerbsPort } from '../../../src/platform/rdma/verbs-port.js';
import type {
  VerbsAh,
  VerbsAsyncEvent,
  VerbsChannel,
  VerbsContext,
  VerbsCq,
  VerbsDevice,
  VerbsDeviceAttributes,
  VerbsGid,
  VerbsMr,
  VerbsMw,
  VerbsPath,
  VerbsPd,
  VerbsPortAttributes,
  VerbsQp,
  VerbsQpAttributes,
  VerbsQpStatus,
} from '../../../src/platform/rdma/verbs-types.js';
import { checkSlots } from '../../../src/platform/rdma/verbs-checks.js';
import type { SendRequests } from '../../../src/platform/rdma/verbs-work.js';
import { RangeMap } from '../../../src/range-map.js';
import { hex, type Va } from '../../../src/units.js';
import { fakeRdmaCm, type CmListeners } from './connection-manager.js';

/** A device of a host. */
export interface FakeDeviceOptions {
  readonly name: string;
  /** The address of its only port */
  readonly ipv4: string;
  readonly transport?: VerbsDevice['transport'];
  /** Default 1000. */
  readonly maxMrs?: number;
  /** What it says of itself, where that is not what others say. */
  readonly attributes?: Partial<VerbsDeviceAttributes>;
  /** GIDs of its port in front of that of `ipv4`. Default: a link-local one. */
  readonly gids?: readonly string[];
  /** Completions that a queue really holds, whatever it was made with: a fault. Default: none. */
  readonly cqHolds?: number;
  /** On-demand paging, explicit and implicit. Default false. */
  readonly onDemand?: boolean;
  /** The real path of what it belongs to in sysfs */
  readonly parent?: string;
}

/** A platform with emulated verbs. */
export interface FakeRdmaPlatform extends Platform {
  readonly verbs: VerbsPort;
  /** What is open on its devices: a line each. */
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
  /** Who listens by the connection manager. */
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

  /** A number nobody else has: addresses of handles, keys, numbers of queue pairs. */
  number(): number {
    return this.#next++;
  }
}

/** A handle whose address goes to 0. */
type Owned<T> = { -readonly [K in keyof T]: T[K] };

interface FakeMr extends Owned<VerbsMr> {
  readonly pd: FakePd;
  readonly start: number;
  readonly length: number;
  readonly access: number;
  /** Windows bound to it. */
  bound: number;
  bytes(offset: number, length: number): Uint8Array;
  release(): void;
}

interface FakeMw extends Owned<VerbsMw> {
  readonly pd: FakePd;
  rkey: number;
  target: { mr: FakeMr; start: number; length: number; access: number } | undefined;
}

interface FakeContext extends Owned<VerbsContext> {
  readonly device: FakeDevice;
  readonly events: VerbsAsyncEvent[];
  readonly signal: Signal;
  children: number;
}

interface FakePd extends Owned<VerbsPd> {
  readonly context: FakeContext;
  children: number;
}

interface FakeChannel extends Owned<VerbsChannel> {
  readonly context: FakeContext;
  readonly events: FakeCq[];
  readonly signal: Signal;
  children: number;
}

interface FakeCq extends Owned<VerbsCq> {
  readonly context: FakeContext;
  readonly channel: FakeChannel | undefined;
  readonly done: Done[];
  armed: boolean;
  children: number;
}

interface FakeQp extends Owned<VerbsQp> {
  readonly pd: FakePd;
  readonly sendCq: FakeCq;
  readonly receiveCq: FakeCq;
  readonly signalAll: boolean;
  status: VerbsQpStatus;
  peerGid: string;
  readonly posted: Receive[];
  readonly todo: Send[];
}

interface FakeAh extends Owned<VerbsAh> {
  readonly pd: FakePd;
  readonly path: VerbsPath;
}

interface Segment {
  readonly va: number;
  readonly length: number;
  readonly lkey: number;
}

interface Receive {
  readonly id: number;
  readonly segments: readonly Segment[];
}

interface Send extends Receive {
  readonly opcode: number;
  readonly flags: number;
  readonly immediate: number;
  readonly remote: number;
  readonly rkey: number;
  readonly compare: bigint;
  readonly swap: bigint;
  readonly ah: number;
  readonly number: number;
  readonly qkey: number;
  readonly window: {
    readonly mw: number;
    readonly rkey: number;
    readonly mr: number;
    readonly start: number;
    readonly length: number;
    readonly access: number;
  };
}

/** A completion. */
interface Done {
  readonly id: number;
  readonly status: number;
  readonly opcode: number;
  readonly bytes: number;
  readonly immediate: number;
  readonly qp: number;
  readonly source: number;
  readonly flags: number;
}

interface FakeDevice {
  readonly options: FakeDeviceOptions;
  readonly facts: VerbsDevice;
  readonly gid: string;
  readonly contexts: Set<FakeContext>;
  /** Live regions and bound windows, by key. */
  readonly mrs: Map<number, FakeMr>;
  readonly windows: Map<number, FakeMw>;
  gone: boolean;
}

/** A descriptor that is only a number: ready as long as something is there. */
class Signal {
  readonly fd: number;
  readonly #isReady: () => boolean;
  readonly #watchers = new Set<() => void>();

  constructor(fd: number, isReady: () => boolean) {
    this.fd = fd;
    this.#isReady = isReady;
  }

  watch(onReady: () => void): Watch {
    let alive: NodeJS.Timeout | undefined = setInterval(() => undefined, 2 ** 30);
    const turn = (): void => {
      if (!this.#watchers.has(turn) || !this.#isReady()) return;
      onReady();
      setImmediate(turn);
    };
    this.#watchers.add(turn);
    setImmediate(turn);
    return {
      setRef: (keepAlive) => {
        if (!keepAlive) alive?.unref();
        else alive?.ref();
      },
      close: () => {
        clearInterval(alive);
        alive = undefined;
        this.#watchers.delete(turn);
      },
    };
  }

  ring(): void {
    for (const turn of this.#watchers) setImmediate(turn);
  }
}

/** Descriptors of signals begin here. */
const FIRST_FD = 1_000_000;
const GRH = 40;
const BYTES = 2 ** 31;

/** A finding of the side that is asked: what its queue pair does then is in `fault`. */
type Refusal = 'access' | 'request' | 'wait' | 'absent';

function fakeHost(fabric: Fabric, base: Platform, list: readonly FakeDeviceOptions[]): FakeRdmaPlatform {
  const devices = list.map((options) => fakeDevice(fabric, options));
  const signals = new Map<number, Signal>();
  /** What is open, by its address. */
  const open = new Map<number, { readonly kind: string; address: number }>();
  /** Arrays whose address was asked for: where requests and completions are. */
  const arrays = new RangeMap<Uint8Array>();
  /** What was mapped here, for platforms whose memory can only be viewed as a whole. */
  const mapped = new RangeMap<{ va: Va; length: number }>();

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

  const words = (address: number, length: number, operation: string): DataView => {
    const array = arrays.at(address) ?? fail('EFAULT', operation, `there is no array at ${hex(address)}`);
    const start = address - base.memory.addressOf(array);
    return new DataView(array.buffer, array.byteOffset + start, length);
  };
  const view = (va: number, length: number): { buffer: ArrayBuffer; offset: number; release: () => void } => {
    if (base.limitation === undefined) {
      const buffer = base.memory.view(va as Va, length);
      return { buffer, offset: 0, release: () => base.memory.detach(buffer) };
    }
    const whole = mapped.at(va) ?? fail('EFAULT', 'ibv_reg_mr', `nothing is mapped at ${hex(va)}`);
    return { buffer: base.memory.view(whole.va, whole.length), offset: va - whole.va, release: () => undefined };
  };

  const push = (cq: FakeCq, done: Done): void => {
    if (cq.done.length >= (cq.context.device.options.cqHolds ?? cq.entries))
      return tell(cq.context, { name: 'CQ_ERR', type: 0, port: undefined, qp: undefined, cq });
    cq.done.push(done);
    if (!cq.armed || cq.channel === undefined) return;
    cq.armed = false;
    cq.channel.events.push(cq);
    cq.channel.signal.ring();
  };
  const complete = (qp: FakeQp, send: Send, status: number, bytes = 0): void => {
    if (status === abi.IBV_WC_SUCCESS && !qp.signalAll && (send.flags & abi.IBV_SEND_SIGNALED) === 0) return;
    const opcode = OPCODES.get(send.opcode) ?? abi.IBV_WC_SEND;
    push(qp.sendCq, { id: send.id, status, opcode, bytes, immediate: 0, qp: qp.number, source: 0, flags: 0 });
  };
  const stop = (qp: FakeQp): void => {
    qp.status = { ...qp.status, state: IBV_QPS_ERR };
    for (const send of qp.todo.splice(0)) complete(qp, send, abi.IBV_WC_WR_FLUSH_ERR);
    for (const { id } of qp.posted.splice(0)) received(qp, id, abi.IBV_WC_WR_FLUSH_ERR, {});
  };
  const received = (qp: FakeQp, id: number, status: number, more: Partial<Done>): void =>
    push(qp.receiveCq, {
      bytes: 0,
      immediate: 0,
      source: 0,
      flags: 0,
      opcode: abi.IBV_WC_RECV,
      ...more,
      id,
      status,
      qp: qp.number,
    });

  /** Local memory of a request, checked; `undefined` when it may not be used so. */
  const gather = (pd: FakePd, segments: readonly Segment[], access: number): Uint8Array[] | undefined => {
    const parts: Uint8Array[] = [];
    for (const { va, length, lkey } of segments) {
      if (length === 0) continue;
      const mr = pd.context.device.mrs.get(lkey);
      if (mr?.pd !== pd || (mr.access & access) !== access || va < mr.start || va + length > mr.start + mr.length)
        return undefined;
      parts.push(mr.bytes(va - mr.start, length));
    }
    return parts;
  };

  /** Does one request. `wait`: the peer has no receive for it. */
  const execute = (qp: FakeQp, send: Send): 'done' | 'wait' => {
    const { device } = qp.pd.context;
    const end = (status: number, bytes = 0): 'done' => {
      complete(qp, send, status, bytes);
      if (status !== abi.IBV_WC_SUCCESS) stop(qp);
      return 'done';
    };
    if (send.opcode === abi.IBV_WR_BIND_MW || send.opcode === abi.IBV_WR_LOCAL_INV) {
      const mw =
        send.opcode === abi.IBV_WR_BIND_MW
          ? (open.get(send.window.mw) as FakeMw | undefined)
          : device.windows.get(send.immediate);
      if (mw === undefined) return end(abi.IBV_WC_MW_BIND_ERR);
      return end(
        bind(device, mw, send.opcode === abi.IBV_WR_BIND_MW ? send.window : undefined)
          ? abi.IBV_WC_SUCCESS
          : abi.IBV_WC_MW_BIND_ERR,
      );
    }
    const writesHere = FETCHES.includes(send.opcode);
    const local = gather(qp.pd, send.segments, writesHere ? memoryAbi.IBV_ACCESS_LOCAL_WRITE : 0);
    if (local === undefined) return end(abi.IBV_WC_LOC_PROT_ERR);
    const bytes = local.reduce((sum, part) => sum + part.length, 0);
    if (qp.type === 'ud') {
      const ah = open.get(send.ah) as FakeAh | undefined;
      if (bytes > 4096) return end(abi.IBV_WC_LOC_LEN_ERR);
      const to = fabric.pairs.get(`${ah?.path.route?.gid ?? ''} ${send.number}`);
      if (to !== undefined && to.type === 'ud' && to.status.state !== IBV_QPS_ERR && to.status.qkey === send.qkey)
        deliver(qp, to, send, local, bytes, GRH);
      return end(abi.IBV_WC_SUCCESS);
    }
    const to = fabric.pairs.get(`${qp.peerGid} ${qp.status.peer}`);
    const isThere =
      to !== undefined && to.status.peer === qp.number && [IBV_QPS_RTR, IBV_QPS_RTS].includes(to.status.state);
    if (!isThere || to.pd.context.device.gone) return end(abi.IBV_WC_RETRY_EXC_ERR);
    const outcome = reach(qp, to, send, local, bytes);
    if (outcome === 'wait') return qp.status.rnrRetries === 7 ? 'wait' : end(abi.IBV_WC_RNR_RETRY_EXC_ERR);
    if (outcome === 'done') return end(abi.IBV_WC_SUCCESS, writesHere ? bytes : 0);
    stop(to);
    if (outcome === 'access')
      tell(to.pd.context, { name: 'QP_ACCESS_ERR', type: 3, port: undefined, qp: to, cq: undefined });
    return end(outcome === 'access' ? abi.IBV_WC_REM_ACCESS_ERR : abi.IBV_WC_REM_INV_REQ_ERR);
  };

  /** The far end of a request. */
  const reach = (qp: FakeQp, to: FakeQp, send: Send, local: readonly Uint8Array[], bytes: number): Refusal | 'done' => {
    const { opcode, remote, rkey } = send;
    const needs = NEEDS.get(opcode);
    const length = ATOMICS.includes(opcode) ? 8 : bytes;
    if (needs !== undefined && length > 0) {
      if (ATOMICS.includes(opcode) && remote % 8 !== 0) return 'request';
      const target = remoteBytes(to, remote, length, rkey, needs);
      if (target === undefined) return 'access';
      if (opcode === abi.IBV_WR_RDMA_READ) scatter(target, local);
      else if (ATOMICS.includes(opcode)) atomic(send, target, local);
      else {
        // The receive is looked for first, so that a write which has to wait has done nothing yet.
        if (opcode === abi.IBV_WR_RDMA_WRITE_WITH_IMM && to.posted.length === 0) return 'wait';
        target.set(join(local, bytes));
      }
    }
    if (opcode === abi.IBV_WR_RDMA_WRITE_WITH_IMM) {
      const receive = to.posted.shift();
      if (receive === undefined) return 'wait';
      received(to, receive.id, abi.IBV_WC_SUCCESS, {
        opcode: abi.IBV_WC_RECV_RDMA_WITH_IMM,
        bytes,
        immediate: send.immediate,
        flags: abi.IBV_WC_WITH_IMM,
      });
    } else if (needs === undefined) return deliver(qp, to, send, local, bytes, 0);
    return 'done';
  };

  const deliver = (
    qp: FakeQp,
    to: FakeQp,
    send: Send,
    local: readonly Uint8Array[],
    bytes: number,
    header: number,
  ): Refusal | 'done' => {
    const [receive] = to.posted;
    if (receive === undefined) return 'wait';
    const room = gather(to.pd, receive.segments, memoryAbi.IBV_ACCESS_LOCAL_WRITE);
    to.posted.shift();
    if (room === undefined) {
      received(to, receive.id, abi.IBV_WC_LOC_PROT_ERR, {});
      return 'request';
    }
    if (room.reduce((sum, part) => sum + part.length, 0) < bytes + header) {
      received(to, receive.id, abi.IBV_WC_LOC_LEN_ERR, {});
      return 'request';
    }
    const message = new Uint8Array(header + bytes);
    message.set(join(local, bytes), header);
    scatter(message, room);
    const withImmediate = send.opcode === abi.IBV_WR_SEND_WITH_IMM;
    const withInvalidate = send.opcode === abi.IBV_WR_SEND_WITH_INV;
    if (withInvalidate) {
      const mw = to.pd.context.device.windows.get(send.immediate);
      if (mw === undefined) return 'access';
      bind(to.pd.context.device, mw, undefined);
    }
    const flags =
      (withImmediate ? abi.IBV_WC_WITH_IMM : 0) +
      (withInvalidate ? abi.IBV_WC_WITH_INV : 0) +
      (header > 0 ? abi.IBV_WC_GRH : 0);
    received(to, receive.id, abi.IBV_WC_SUCCESS, {
      bytes: bytes + header,
      immediate: send.immediate,
      flags,
      source: header > 0 ? qp.number : 0,
    });
    return 'done';
  };

  /** @returns whether it could be done */
  const bind = (device: FakeDevice, mw: FakeMw, to: Send['window'] | undefined): boolean => {
    const mr = to === undefined ? undefined : (open.get(to.mr) as FakeMr | undefined);
    const binds = to !== undefined && to.length > 0;
    if (
      binds &&
      (mr === undefined ||
        mr.pd !== mw.pd ||
        (mr.access & memoryAbi.IBV_ACCESS_MW_BIND) === 0 ||
        to.start < mr.start ||
        to.start + to.length > mr.start + mr.length)
    )
      return false;
    if (mw.target !== undefined) mw.target.mr.bound--;
    device.windows.delete(mw.rkey);
    mw.target = undefined;
    if (binds && mr !== undefined) {
      mw.target = { mr, start: to.start, length: to.length, access: to.access };
      mr.bound++;
      mw.rkey = to.rkey;
      device.windows.set(mw.rkey, mw);
    }
    return true;
  };

  const run = (qp: FakeQp): void => {
    for (let send = qp.todo.at(0); send !== undefined; send = qp.todo.at(0)) {
      // Out of the list first: a failure flushes what is in it.
      qp.todo.shift();
      if (execute(qp, send) === 'wait') {
        qp.todo.unshift(send);
        return;
      }
    }
  };

  const readSegments = (request: DataView, operation: string): Segment[] => {
    const list = wide(request, abi.SEND_WR.sg_list);
    return Array.from({ length: request.getInt32(abi.SEND_WR.num_sge, true) }, (_, index) => {
      const segment = words(list + index * abi.SGE.size, abi.SGE.size, operation);
      return {
        va: wide(segment, abi.SGE.addr),
        length: segment.getUint32(abi.SGE.length, true),
        lkey: segment.getUint32(abi.SGE.lkey, true),
      };
    });
  };

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
      write(words(into.address, into.slots * abi.WC.size, 'ibv_poll_cq'), cq.done.splice(0, count));
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
          enqueue(qp, readSend(requests, (first + taken) % requests.slots, qp));
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
        const receive = { id: wide(request, abi.RECV_WR.wr_id), segments: readSegments(request, 'ibv_post_recv') };
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
  const readSend = (requests: SendRequests, slot: number, qp: FakeQp): Send => {
    if (!requests.isSound(slot, qp.pd, qp.type === 'ud'))
      fail('EINVAL', 'ibv_post_send', `slot ${slot} leads to what is closed`);
    const request = words(requests.addressOf(slot), abi.SEND_WR.size, 'ibv_post_send');
    const u32 = (at: number): number => request.getUint32(at, true);
    const { SEND_WR } = abi;
    const opcode = u32(SEND_WR.opcode);
    const hasKey = opcode === abi.IBV_WR_LOCAL_INV || opcode === abi.IBV_WR_SEND_WITH_INV;
    return {
      id: wide(request, SEND_WR.wr_id),
      segments: readSegments(request, 'ibv_post_send'),
      opcode,
      flags: u32(SEND_WR.send_flags),
      immediate: hasKey ? u32(SEND_WR.invalidate_rkey) : request.getUint32(SEND_WR.imm_data, false),
      remote: wide(request, SEND_WR['wr.rdma.remote_addr']),
      rkey: u32(ATOMICS.includes(opcode) ? SEND_WR['wr.atomic.rkey'] : SEND_WR['wr.rdma.rkey']),
      compare: request.getBigUint64(SEND_WR['wr.atomic.compare_add'], true),
      swap: request.getBigUint64(SEND_WR['wr.atomic.swap'], true),
      ah: wide(request, SEND_WR['wr.ud.ah']),
      number: u32(SEND_WR['wr.ud.remote_qpn']),
      qkey: u32(SEND_WR['wr.ud.remote_qkey']),
      window: {
        mw: wide(request, SEND_WR['bind_mw.mw']),
        rkey: u32(SEND_WR['bind_mw.rkey']),
        mr: wide(request, SEND_WR['bind_mw.bind_info.mr']),
        start: wide(request, SEND_WR['bind_mw.bind_info.addr']),
        length: wide(request, SEND_WR['bind_mw.bind_info.length']),
        access: u32(SEND_WR['bind_mw.bind_info.mw_access_flags']),
      },
    };
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
    memory: new Proxy(base.memory, {
      get(target, key): unknown {
        if (key === 'addressOf')
          return (array: ArrayBufferView | ArrayBufferLike): Va => {
            const va = target.addressOf(array);
            // Requests and completions begin where their buffer does; others are the user's and can be long.
            if (ArrayBuffer.isView(array) && array.byteLength <= 2 ** 24) {
              for (
                let old = arrays.overlapping(va, va + array.byteLength);
                old !== undefined;
                old = arrays.overlapping(va, va + array.byteLength)
              )
                arrays.delete(target.addressOf(old));
              arrays.insert(va, array.byteLength, new Uint8Array(array.buffer, array.byteOffset, array.byteLength));
            }
            return va;
          };
        if (key === 'map')
          return (options: Parameters<typeof target.map>[0]): Va => {
            const va = target.map(options);
            mapped.insert(va, options.length, { va, length: options.length });
            return va;
          };
        if (key === 'unmap')
          return (va: Va, length: number): void => {
            target.unmap(va, length);
            mapped.delete(va);
          };
        const value: unknown = Reflect.get(target, key);
        return typeof value === 'function'
          ? (...args: unknown[]): unknown => Reflect.apply(value, target, args)
          : value;
      },
    }),
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

const OPCODES: ReadonlyMap<number, number> = new Map([
  [abi.IBV_WR_RDMA_WRITE, abi.IBV_WC_RDMA_WRITE],
  [abi.IBV_WR_RDMA_WRITE_WITH_IMM, abi.IBV_WC_RDMA_WRITE],
  [abi.IBV_WR_RDMA_READ, abi.IBV_WC_RDMA_READ],
  [abi.IBV_WR_ATOMIC_CMP_AND_SWP, abi.IBV_WC_COMP_SWAP],
  [abi.IBV_WR_ATOMIC_FETCH_AND_ADD, abi.IBV_WC_FETCH_ADD],
  [abi.IBV_WR_BIND_MW, abi.IBV_WC_BIND_MW],
  [abi.IBV_WR_LOCAL_INV, abi.IBV_WC_LOCAL_INV],
]);
/** What a request needs of the peer's memory; none for messages. */
const NEEDS: ReadonlyMap<number, number> = new Map([
  [abi.IBV_WR_RDMA_WRITE, memoryAbi.IBV_ACCESS_REMOTE_WRITE],
  [abi.IBV_WR_RDMA_WRITE_WITH_IMM, memoryAbi.IBV_ACCESS_REMOTE_WRITE],
  [abi.IBV_WR_RDMA_READ, memoryAbi.IBV_ACCESS_REMOTE_READ],
  [abi.IBV_WR_ATOMIC_CMP_AND_SWP, memoryAbi.IBV_ACCESS_REMOTE_ATOMIC],
  [abi.IBV_WR_ATOMIC_FETCH_AND_ADD, memoryAbi.IBV_ACCESS_REMOTE_ATOMIC],
]);
const ATOMICS: readonly number[] = [abi.IBV_WR_ATOMIC_CMP_AND_SWP, abi.IBV_WR_ATOMIC_FETCH_AND_ADD];
const FETCHES: readonly number[] = [abi.IBV_WR_RDMA_READ, ...ATOMICS];
const NO_SEND: Send = {
  id: 0,
  segments: [],
  opcode: 0,
  flags: 0,
  immediate: 0,
  remote: 0,
  rkey: 0,
  compare: 0n,
  swap: 0n,
  ah: 0,
  number: 0,
  qkey: 0,
  window: { mw: 0, rkey: 0, mr: 0, start: 0, length: 0, access: 0 },
};
const RESET: VerbsQpStatus = {
  state: IBV_QPS_RESET,
  access: 0,
  pkeyIndex: 0,
  port: 0,
  qkey: 0,
  mtu: 0,
  peer: 0,
  receivePsn: 0,
  sendPsn: 0,
  timeout: 0,
  retries: 0,
  rnrRetries: 0,
  minRnrTimer: 0,
  initiatorDepth: 0,
  responderDepth: 0,
};
const PORT: VerbsPortAttributes = {
  state: 'active',
  linkLayer: 'ethernet',
  maxMtu: 4096,
  activeMtu: 1024,
  maxMessage: BYTES,
  gids: 2,
  pkeys: 1,
  lid: 0,
  smLid: 0,
  capabilities: 0,
  grhRequired: false,
};

function fakeDevice(fabric: Fabric, options: FakeDeviceOptions): FakeDevice {
  const { name, ipv4, transport = 'ib', parent } = options;
  const bytes = ipv4.split('.').map((byte) => Number(byte).toString(16).padStart(2, '0'));
  const facts: VerbsDevice = {
    name,
    guid: `0000:0000:0000:${fabric.number().toString(16).padStart(4, '0')}`,
    node: transport === 'iwarp' ? 'rnic' : 'ca',
    transport,
    path: `/sys/class/infiniband/${name}`,
    devicePath: '/dev/infiniband/uverbs0',
    parent,
  };
  const gid = `0000:0000:0000:0000:0000:ffff:${bytes.slice(0, 2).join('')}:${bytes.slice(2).join('')}`;
  return { options, facts, gid, contexts: new Set(), mrs: new Map(), windows: new Map(), gone: false };
}

function gidsOf({ gid, options: { gids = ['fe80:0000:0000:0000:0000:0000:0000:0001'] } }: FakeDevice): VerbsGid[] {
  return [...gids, gid].map((each, index) => ({ port: 1, index, gid: each, type: 'roce-v2', interfaceIndex: 2 }));
}

function attributesOf({ facts, options }: FakeDevice): VerbsDeviceAttributes {
  const odp = options.onDemand === true ? 31 : 0;
  return {
    firmware: '',
    nodeGuid: facts.guid,
    systemGuid: facts.guid,
    vendorId: 0,
    vendorPart: 0,
    hardwareVersion: 0,
    ports: 1,
    maxMrLength: 2 ** 53,
    pageSizes: [4096],
    maxMrs: options.maxMrs ?? 1000,
    maxMws: 1000,
    maxPds: 1000,
    maxQps: 1000,
    maxRequests: 16384,
    maxSges: 32,
    maxReadSges: 32,
    maxCqs: 1000,
    maxCqEntries: 32767,
    maxAhs: 1000,
    maxInitiatorDepth: 128,
    maxResponderDepth: 128,
    atomics: 'device',
    capabilities: IBV_DEVICE_MEM_WINDOW,
    odp: { general: odp === 0 ? 0 : IBV_ODP_SUPPORT + IBV_ODP_SUPPORT_IMPLICIT, rc: odp, uc: 0, ud: 0 },
    ...options.attributes,
  };
}

function checkAccess({ options }: FakeDevice, access: number, operation: string): void {
  const writes = memoryAbi.IBV_ACCESS_REMOTE_WRITE + memoryAbi.IBV_ACCESS_REMOTE_ATOMIC;
  if ((access & writes) !== 0 && (access & memoryAbi.IBV_ACCESS_LOCAL_WRITE) === 0)
    throw new DmaError({ code: 'EINVAL', operation, reason: 'remote writes need local ones' });
  if ((access & memoryAbi.IBV_ACCESS_ON_DEMAND) !== 0 && options.onDemand !== true)
    throw new DmaError({ code: 'ENOTSUP', operation, reason: 'no on-demand paging' });
}

function tell(context: FakeContext, event: VerbsAsyncEvent): void {
  context.events.push(event);
  context.signal.ring();
}

/** The peer's bytes that a key gives; `undefined` when it does not. */
function remoteBytes(to: FakeQp, address: number, length: number, rkey: number, needs: number): Uint8Array | undefined {
  const { device } = to.pd.context;
  const window = device.windows.get(rkey);
  const mr = window?.target?.mr ?? device.mrs.get(rkey);
  const { start, length: size, access } = window?.target ?? mr ?? { start: 0, length: 0, access: 0 };
  const allowed = mr?.pd === to.pd && (access & needs) === needs && (to.status.access & needs) === needs;
  if (mr === undefined || !allowed || address < start || address + length > start + size) return undefined;
  return mr.bytes(address - mr.start, length);
}

function atomic({ opcode, compare, swap }: Send, target: Uint8Array, local: readonly Uint8Array[]): void {
  const there = new DataView(target.buffer, target.byteOffset, 8);
  const before = there.getBigUint64(0, true);
  if (opcode === abi.IBV_WR_ATOMIC_FETCH_AND_ADD) there.setBigUint64(0, BigInt.asUintN(64, before + compare), true);
  else if (before === compare) there.setBigUint64(0, swap, true);
  const old = new Uint8Array(8);
  new DataView(old.buffer).setBigUint64(0, before, true);
  scatter(old, local);
}

function join(parts: readonly Uint8Array[], bytes: number): Uint8Array {
  const whole = new Uint8Array(bytes);
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

function scatter(from: Uint8Array, parts: readonly Uint8Array[]): void {
  let at = 0;
  for (const part of parts) {
    part.set(from.subarray(at, at + part.length));
    at += part.length;
  }
}

function mayBecome(qp: FakeQp, { state, port, peer, path }: VerbsQpAttributes): boolean {
  const now = qp.status.state;
  if (state === undefined || state === IBV_QPS_ERR || state === IBV_QPS_RESET) return true;
  if (state === IBV_QPS_INIT) return (now === IBV_QPS_RESET || now === IBV_QPS_INIT) && port === 1;
  if (state === IBV_QPS_RTR)
    return now === IBV_QPS_INIT && (qp.type === 'ud' || (peer !== undefined && path?.route !== undefined));
  return state === IBV_QPS_RTS && now === IBV_QPS_RTR;
}

function wide(from: DataView, at: number): number {
  return from.getUint32(at, true) + from.getUint32(at + 4, true) * 2 ** 32;
}

function write(into: DataView, all: readonly Done[]): void {
  for (const [index, done] of all.entries()) {
    const at = index * abi.WC.size;
    const put = (field: number, value: number): void => into.setUint32(at + field, value, true);
    put(abi.WC.wr_id, done.id >>> 0);
    put(abi.WC.wr_id + 4, Math.floor(done.id / 2 ** 32));
    put(abi.WC.status, done.status);
    put(abi.WC.opcode, done.opcode);
    put(abi.WC.byte_len, done.bytes);
    put(abi.WC.qp_num, done.qp);
    put(abi.WC.src_qp, done.source);
    put(abi.WC.wc_flags, done.flags);
    if ((done.flags & abi.IBV_WC_WITH_INV) !== 0) put(abi.WC.invalidated_rkey, done.immediate);
    else into.setUint32(at + abi.WC.imm_data, done.immediate, false);
  }
}
