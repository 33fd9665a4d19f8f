/** RDMA verbs on Linux, by libibverbs. */
import { DmaError, ERRNO, invalid, isDmaError } from '../../errors.js';
import { hex, isAddress } from '../../units.js';
import { fail } from '../linux/libc.js';
import type { CFunction, Libc } from '../linux/libc.js';
import { loadLibibverbs } from './libibverbs.js';
import type { Libibverbs } from './libibverbs.js';
import { eachVerbsDevice, noVerbsDevice } from './linux-verbs-devices.js';
import { F_GETFL, F_SETFL, O_NONBLOCK } from '../uapi/fcntl.js';
import { CONTEXT } from './abi/context.js';
import { DEVICE_ATTR_EX, GID_ENTRY, PORT_ATTR } from './abi/devices.js';
import * as events from './abi/events.js';
import { IBV_ADVISE_MR_FLAG_FLUSH, MR, MW, MW_BIND } from './abi/memory.js';
import * as queues from './abi/queues.js';
import { SGE } from './abi/requests.js';
import {
  checkNumber,
  QP_STATUS_MASK,
  readDeviceAttributes,
  readGid,
  readPortAttributes,
  readQpStatus,
  writePath,
  writeQpAttributes,
} from './verbs-attributes.js';
import { checkRange, checkSame, checkSlots, isOpenCq, isOpenQp, refuse, use } from './verbs-checks.js';
import { Ah, CompletionChannel, DeviceContext, contextFunctions, Cq, Mr, Mw, Part, Pd, Qp } from './verbs-handles.js';
import type { VerbsPort } from './verbs-port.js';
import type {
  VerbsAsyncEvent,
  VerbsDevice,
  VerbsHandle,
  VerbsLoan,
  VerbsMrOptions,
  VerbsPath,
  VerbsQpAttributes,
  VerbsQpOptions,
} from './verbs-types.js';
import type { Completions, ReceiveRequests, SendRequests } from './verbs-work.js';

const { AH_ATTR, COMP_CHANNEL, CQ, QP, QP_ATTR, QP_INIT_ATTR } = queues;

const QP_TYPES = { rc: queues.IBV_QPT_RC, uc: queues.IBV_QPT_UC, ud: queues.IBV_QPT_UD } as const;

const PORT_EVENTS: readonly number[] = [
  events.IBV_EVENT_PORT_ACTIVE,
  events.IBV_EVENT_PORT_ERR,
  events.IBV_EVENT_LID_CHANGE,
  events.IBV_EVENT_PKEY_CHANGE,
  events.IBV_EVENT_SM_CHANGE,
  events.IBV_EVENT_CLIENT_REREGISTER,
  events.IBV_EVENT_GID_CHANGE,
];

const MAX_INT = 0x7fffffff;
const MAX_U32 = 0xffffffff;
/** The most bytes of a segment: its length has 32 bits, and this is a multiple of all page sizes. */
const MOST_IN_SEGMENT = 2 ** 31;

/** The {@link VerbsPort} that calls libibverbs, which is loaded on first use. */
export function linuxVerbs(libc: Libc, load: (libc: Libc) => Libibverbs | string = loadLibibverbs): VerbsPort {
  return new LinuxVerbs(libc, load);
}

class LinuxVerbs implements VerbsPort {
  readonly #libc: Libc;
  readonly #load: (libc: Libc) => Libibverbs | string;
  #library: Libibverbs | string | undefined;
  #functionsOf: ReturnType<typeof contextFunctions> | undefined;
  /** Output of calls that return pointers. */
  readonly #out = new Uint32Array(new ArrayBuffer(16));
  readonly #outAddress: number;
  readonly #unused = new Uint32Array(new ArrayBuffer(8));

  constructor(libc: Libc, load: (libc: Libc) => Libibverbs | string) {
    this.#libc = libc;
    this.#load = load;
    this.#outAddress = libc.addressOf(this.#out);
  }

  get limitation(): string | undefined {
    const library = this.#loaded();
    return typeof library === 'string' ? library : undefined;
  }

  devices(): VerbsDevice[] {
    const list: VerbsDevice[] = [];
    const library = this.#ibv('ibv_get_device_list');
    eachVerbsDevice(this.#libc, library, (device) => void list.push(device));
    return list;
  }

  open(name: string): DeviceContext {
    const libc = this.#libc;
    const library = this.#ibv('ibv_open_device');
    let found = false;
    let context = 0;
    let errno = 0;
    eachVerbsDevice(libc, library, (device, address) => {
      if (device.name !== name) return;
      found = true;
      context = library.openDevice(address);
      if (context === 0) errno = libc.errno();
    });
    if (!found) throw noVerbsDevice(name);
    if (context === 0) refuse(errno, 'ibv_open_device', name);
    try {
      const asyncFd = libc.peek(context + CONTEXT.async_fd);
      this.#setNonBlocking(asyncFd);
      const functions = (this.#functionsOf ??= contextFunctions(libc))(context);
      return new DeviceContext(context, name, asyncFd, libc.peek(context + CONTEXT.num_comp_vectors), functions);
    } catch (error) {
      library.closeDevice(context);
      throw error;
    }
  }

  close(handle: VerbsHandle): void {
    const context = use(handle, DeviceContext, 'ibv_close_device');
    const { size } = context.parts;
    if (size > 0)
      throw new DmaError({
        code: 'EBUSY',
        operation: 'ibv_close_device',
        reason: `${size} objects created on ${context.name} are open`,
      });
    this.#check('ibv_close_device', context.name, this.#ibv('ibv_close_device').closeDevice(context.address));
    context.address = 0;
  }

  queryDevice(handle: VerbsHandle): ReturnType<VerbsPort['queryDevice']> {
    const { address, name, functions } = use(handle, DeviceContext, 'ibv_query_device');
    const struct = room(DEVICE_ATTR_EX.size);
    let result = functions.queryDeviceEx?.(address, 0, struct, DEVICE_ATTR_EX.size) ?? ERRNO.ENOTSUP;
    if (result === ERRNO.ENOTSUP || result === ERRNO.ENOSYS) {
      new Uint8Array(struct.buffer).fill(0);
      result = this.#ibv('ibv_query_device').queryDevice(address, struct);
    }
    this.#check('ibv_query_device', name, result);
    return readDeviceAttributes(struct);
  }

  queryPort(handle: VerbsHandle, port: number): ReturnType<VerbsPort['queryPort']> {
    const { address, name, functions } = use(handle, DeviceContext, 'ibv_query_port');
    checkNumber('ibv_query_port', 'port', port, 255);
    const struct = room(PORT_ATTR.size);
    const { queryPort } = this.#ibv('ibv_query_port');
    this.#check(
      'ibv_query_port',
      `port ${port} of ${name}`,
      functions.queryPort?.(address, port, struct, PORT_ATTR.size) ?? queryPort(address, port, struct),
    );
    return readPortAttributes(struct);
  }

  gids(handle: VerbsHandle): ReturnType<VerbsPort['gids']> {
    const { address, name } = use(handle, DeviceContext, 'ibv_query_gid_table');
    const { ports } = this.queryDevice(handle);
    let most = 0;
    for (let port = 1; port <= ports; port++) most += this.queryPort(handle, port).gids;
    if (most === 0) return [];
    const struct = room(most * GID_ENTRY.size);
    const { queryGidTable } = this.#ibv('ibv_query_gid_table');
    const count = queryGidTable(address, struct, most, 0, GID_ENTRY.size);
    if (count < 0) refuse(-count, 'ibv_query_gid_table', name);
    return Array.from({ length: count }, (_, i) =>
      readGid(new DataView(struct.buffer, i * GID_ENTRY.size, GID_ENTRY.size)),
    );
  }

  nextAsyncEvent(handle: VerbsHandle): VerbsAsyncEvent | undefined {
    const context = use(handle, DeviceContext, 'ibv_get_async_event');
    const { getAsyncEvent, ackAsyncEvent } = this.#ibv('ibv_get_async_event');
    const out = this.#out;
    if (!this.#wasThere('ibv_get_async_event', context.name, getAsyncEvent(context.address, out))) return undefined;
    const type = out[events.ASYNC_EVENT.event_type / 4];
    const element = out[0] + out[1] * 4294967296;
    ackAsyncEvent(out);
    const part = context.parts.get(element);
    return {
      type,
      name: events.EVENTS[type] ?? `event ${type}`,
      port: PORT_EVENTS.includes(type) ? element % 4294967296 : undefined,
      qp: part instanceof Qp ? part : undefined,
      cq: part instanceof Cq ? part : undefined,
    };
  }

  allocatePd(handle: VerbsHandle): Pd {
    const context = use(handle, DeviceContext, 'ibv_alloc_pd');
    return new Pd(
      this.#made('ibv_alloc_pd', context.name, this.#ibv('ibv_alloc_pd').allocPd(context.address)),
      context,
    );
  }

  deallocatePd(pd: VerbsHandle): void {
    this.#giveBack(use(pd, Pd, 'ibv_dealloc_pd'), this.#ibv('ibv_dealloc_pd').deallocPd, 'ibv_dealloc_pd');
  }

  registerMemory(handle: VerbsHandle, options: VerbsMrOptions): Mr {
    const operation = 'ibv_reg_mr';
    const pd = use(handle, Pd, operation);
    const address = this.#ibv(operation).regMr(...registerArguments(pd, options, operation));
    // Build the text only for errors: it costs more than the rest.
    if (address === 0) refuse(this.#libc.errno(), operation, registered(options));
    return this.#mr(address, pd);
  }

  async registerMemoryAsync(handle: VerbsHandle, options: VerbsMrOptions): Promise<Mr> {
    const operation = 'ibv_reg_mr';
    const pd = use(handle, Pd, operation);
    const { result, errno } = await this.#ibv(operation).regMrLater(...registerArguments(pd, options, operation));
    if (result === 0) refuse(errno, operation, registered(options));
    return this.#mr(result, pd);
  }

  registerDmabuf(handle: VerbsHandle, options: Parameters<VerbsPort['registerDmabuf']>[1]): Mr {
    const operation = 'ibv_reg_dmabuf_mr';
    const pd = use(handle, Pd, operation);
    const { fd, offset, length, iova, access } = options;
    checkNumber(operation, 'fd', fd, MAX_INT);
    checkRange(operation, offset, length);
    if (!isAddress(iova)) throw invalid(operation, `the IOVA ${iova} is not an address`);
    checkNumber(operation, 'access', access, MAX_INT);
    const { regDmabufMr } = this.#ibv(operation);
    if (regDmabufMr === undefined)
      throw new DmaError({ code: 'ENOTSUP', operation, reason: 'not supported before rdma-core 34' });
    const subject = `${length} bytes at ${hex(offset)} of fd ${fd}`;
    return this.#mr(this.#made(operation, subject, regDmabufMr(pd.address, offset, length, iova, fd, access)), pd);
  }

  deregisterMemory(handle: VerbsHandle): void {
    const operation = 'ibv_dereg_mr';
    const mr = use(handle, Mr, operation);
    try {
      this.#giveBack(mr, this.#ibv(operation).deregMr, operation);
    } catch (error) {
      throw boundToWindow(error, mr);
    }
  }

  async deregisterMemoryAsync(handle: VerbsHandle): Promise<void> {
    const operation = 'ibv_dereg_mr';
    const mr = use(handle, Mr, operation);
    const { address } = mr;
    const { result, errno } = await this.#ibv(operation).deregMrLater(address);
    try {
      if (result !== 0) refuse(result === -1 ? errno : Math.abs(result), operation, mr.context.name);
    } catch (error) {
      throw boundToWindow(error, mr);
    }
    this.#forget(mr);
  }

  adviseMemory(handle: VerbsHandle, va: number, length: number, advice: number, flush: boolean): void {
    const operation = 'ibv_advise_mr';
    const { pd, lkey } = use(handle, Mr, operation);
    checkRange(operation, va, length);
    checkNumber(operation, 'advice', advice, MAX_INT);
    const count = Math.ceil(length / MOST_IN_SEGMENT);
    const segments = room(count * SGE.size);
    for (let i = 0; i < count; i++) {
      const at = i * MOST_IN_SEGMENT;
      segments.setBigUint64(i * SGE.size + SGE.addr, BigInt(va + at), true);
      segments.setUint32(i * SGE.size + SGE.length, Math.min(length - at, MOST_IN_SEGMENT), true);
      segments.setUint32(i * SGE.size + SGE.lkey, lkey, true);
    }
    const { adviseMr } = pd.context.functions;
    const flags = flush ? IBV_ADVISE_MR_FLAG_FLUSH : 0;
    const subject = `${length} bytes at ${hex(va)}`;
    this.#check(operation, subject, adviseMr?.(pd.address, advice, flags, segments, count) ?? ERRNO.ENOTSUP);
  }

  allocateMw(handle: VerbsHandle, type: 1 | 2): Mw {
    const operation = 'ibv_alloc_mw';
    const pd = use(handle, Pd, operation);
    const { allocMw } = pd.context.functions;
    if (allocMw === undefined) refuse(ERRNO.ENOTSUP, operation, pd.context.name);
    const address = this.#made(operation, `a window of type ${type}`, allocMw(pd.address, type));
    return new Mw(address, pd, type, this.#libc.peek(address + MW.rkey));
  }

  deallocateMw(handle: VerbsHandle): void {
    const operation = 'ibv_dealloc_mw';
    const mw = use(handle, Mw, operation);
    const { deallocMw } = mw.context.functions;
    if (deallocMw === undefined) refuse(ERRNO.ENOTSUP, operation, mw.context.name);
    this.#giveBack(mw, deallocMw, operation);
  }

  bindMw(qp: VerbsHandle, handle: VerbsHandle, binding: Parameters<VerbsPort['bindMw']>[2]): number {
    const operation = 'ibv_bind_mw';
    const queue = use(qp, Qp, operation);
    const mw = use(handle, Mw, operation);
    const mr = use(binding.mr, Mr, operation);
    const { va, length, access, id, flags } = binding;
    if (mw.type !== 1) throw invalid(operation, 'type 2 windows are bound by send requests');
    for (const each of [mw, mr])
      if (each.pd !== queue.pd)
        throw invalid(operation, 'window, region and queue pair are not in the same protection domain');
    if (length !== 0) checkRange(operation, va, length);
    if (!isAddress(id)) throw invalid(operation, `the id ${id} is not an integer in [0, 2^53)`);
    checkNumber(operation, 'access', access, MAX_INT);
    checkNumber(operation, 'flags', flags, MAX_INT);
    const struct = room(MW_BIND.size);
    struct.setBigUint64(MW_BIND.wr_id, BigInt(id), true);
    struct.setUint32(MW_BIND.send_flags, flags, true);
    struct.setBigUint64(MW_BIND['bind_info.mr'], BigInt(mr.address), true);
    struct.setBigUint64(MW_BIND['bind_info.addr'], BigInt(length === 0 ? 0 : va), true);
    struct.setBigUint64(MW_BIND['bind_info.length'], BigInt(length), true);
    struct.setUint32(MW_BIND['bind_info.mw_access_flags'], access, true);
    const { bindMw } = mw.context.functions;
    const subject = `${length} bytes at ${hex(va)}`;
    this.#check(operation, subject, bindMw?.(queue.address, mw.address, struct) ?? ERRNO.ENOTSUP);
    return (mw.rkey = this.#libc.peek(mw.address + MW.rkey));
  }

  createChannel(handle: VerbsHandle): CompletionChannel {
    const operation = 'ibv_create_comp_channel';
    const context = use(handle, DeviceContext, operation);
    const { createCompChannel, destroyCompChannel } = this.#ibv(operation);
    const address = this.#made(operation, context.name, createCompChannel(context.address));
    try {
      const fd = this.#libc.peek(address + COMP_CHANNEL.fd);
      this.#setNonBlocking(fd);
      return new CompletionChannel(address, context, fd);
    } catch (error) {
      destroyCompChannel(address);
      throw error;
    }
  }

  destroyChannel(handle: VerbsHandle): void {
    const operation = 'ibv_destroy_comp_channel';
    this.#giveBack(use(handle, CompletionChannel, operation), this.#ibv(operation).destroyCompChannel, operation);
  }

  nextCqEvent(handle: VerbsHandle): Cq | undefined {
    const operation = 'ibv_get_cq_event';
    const { address, context } = use(handle, CompletionChannel, operation);
    const { getCqEvent, ackCqEvents } = this.#ibv(operation);
    const out = this.#out;
    if (!this.#wasThere(operation, context.name, getCqEvent(address, out, this.#unused))) return undefined;
    const at = out[0] + out[1] * 4294967296;
    ackCqEvents(at, 1);
    const cq = context.parts.get(at);
    // Destroying a queue removes its events from the channel.
    if (!(cq instanceof Cq))
      throw new DmaError({ code: 'EIO', operation, reason: 'an event without a completion queue' });
    return cq;
  }

  createCq(handle: VerbsHandle, entries: number, channel?: VerbsHandle, vector = 0): Cq {
    const operation = 'ibv_create_cq';
    const context = use(handle, DeviceContext, operation);
    checkNumber(operation, 'entries', entries, MAX_INT);
    checkNumber(operation, 'vector', vector, MAX_INT);
    const teller = channel === undefined ? undefined : use(channel, CompletionChannel, operation);
    if (teller !== undefined) checkSame(operation, teller, context);
    const address = this.#made(
      operation,
      `${entries} entries on ${context.name}`,
      this.#ibv(operation).createCq(context.address, entries, 0, teller?.address ?? 0, vector),
    );
    return new Cq(address, context, teller, this.#libc.peek(address + CQ.cqe));
  }

  resizeCq(handle: VerbsHandle, entries: number): void {
    const operation = 'ibv_resize_cq';
    const cq = use(handle, Cq, operation);
    checkNumber(operation, 'entries', entries, MAX_INT);
    this.#check(operation, `${entries} entries`, this.#ibv(operation).resizeCq(cq.address, entries));
    cq.entries = this.#libc.peek(cq.address + CQ.cqe);
  }

  destroyCq(cq: VerbsHandle): void {
    this.#giveBack(use(cq, Cq, 'ibv_destroy_cq'), this.#ibv('ibv_destroy_cq').destroyCq, 'ibv_destroy_cq');
  }

  requestNotify(handle: VerbsHandle, solicitedOnly: boolean): void {
    const { address, context } = use(handle, Cq, 'ibv_req_notify_cq');
    this.#check('ibv_req_notify_cq', context.name, context.functions.reqNotifyCq(address, solicitedOnly ? 1 : 0));
  }

  pollCq(handle: VerbsHandle, into: Completions): number {
    const cq = isOpenCq(handle) ? handle : use(handle, Cq, 'ibv_poll_cq');
    const count = cq.context.functions.pollCq(cq.address, into.slots, into.address);
    return count >= 0 ? count : this.#fail(count, 'ibv_poll_cq', cq.context.name);
  }

  createQp(handle: VerbsHandle, options: VerbsQpOptions): Qp {
    const operation = 'ibv_create_qp';
    const pd = use(handle, Pd, operation);
    const sendCq = use(options.sendCq, Cq, operation);
    const receiveCq = use(options.receiveCq, Cq, operation);
    for (const cq of [sendCq, receiveCq]) checkSame(operation, cq, pd.context);
    const { type, sends = 0, receives = 0, sendSges = 0, receiveSges = 0, inline = 0, signalAll = false } = options;
    const struct = room(QP_INIT_ATTR.size);
    struct.setBigUint64(QP_INIT_ATTR.send_cq, BigInt(sendCq.address), true);
    struct.setBigUint64(QP_INIT_ATTR.recv_cq, BigInt(receiveCq.address), true);
    const counts: readonly [string, number, number][] = [
      ['sends', sends, QP_INIT_ATTR['cap.max_send_wr']],
      ['receives', receives, QP_INIT_ATTR['cap.max_recv_wr']],
      ['sendSges', sendSges, QP_INIT_ATTR['cap.max_send_sge']],
      ['receiveSges', receiveSges, QP_INIT_ATTR['cap.max_recv_sge']],
      ['inline', inline, QP_INIT_ATTR['cap.max_inline_data']],
    ];
    for (const [name, value, at] of counts) {
      checkNumber(operation, name, value, MAX_INT);
      struct.setUint32(at, value, true);
    }
    struct.setUint32(QP_INIT_ATTR.qp_type, QP_TYPES[type], true);
    struct.setUint32(QP_INIT_ATTR.sq_sig_all, signalAll ? 1 : 0, true);
    const address = this.#made(
      operation,
      `${sends} sends of ${sendSges} segments, ${receives} receives of ${receiveSges}, ${inline} bytes inline`,
      this.#ibv(operation).createQp(pd.address, struct),
    );
    return new Qp(address, pd, type, sendCq, receiveCq, {
      number: this.#libc.peek(address + QP.qp_num),
      sends: struct.getUint32(QP_INIT_ATTR['cap.max_send_wr'], true),
      receives: struct.getUint32(QP_INIT_ATTR['cap.max_recv_wr'], true),
      sendSges: struct.getUint32(QP_INIT_ATTR['cap.max_send_sge'], true),
      receiveSges: struct.getUint32(QP_INIT_ATTR['cap.max_recv_sge'], true),
      inline: struct.getUint32(QP_INIT_ATTR['cap.max_inline_data'], true),
    });
  }

  modifyQp(handle: VerbsHandle, attributes: VerbsQpAttributes): void {
    const { address, number } = use(handle, Qp, 'ibv_modify_qp');
    const struct = room(QP_ATTR.size);
    const mask = writeQpAttributes(struct, attributes);
    const { modifyQp } = this.#ibv('ibv_modify_qp');
    this.#check('ibv_modify_qp', `queue pair ${number}`, modifyQp(address, struct, mask));
  }

  async modifyQpAsync(handle: VerbsHandle, attributes: VerbsQpAttributes): Promise<void> {
    const operation = 'ibv_modify_qp';
    const { address, number } = use(handle, Qp, operation);
    const struct = room(QP_ATTR.size);
    const mask = writeQpAttributes(struct, attributes);
    const outcome = this.#ibv(operation).modifyQpLater(address, this.#libc.addressOf(struct), mask);
    const { result, errno } = await keeping(struct, outcome);
    if (result !== 0) refuse(result === -1 ? errno : Math.abs(result), operation, `queue pair ${number}`);
  }

  queryQp(handle: VerbsHandle): ReturnType<VerbsPort['queryQp']> {
    const { address, number } = use(handle, Qp, 'ibv_query_qp');
    const struct = room(QP_ATTR.size);
    const { queryQp } = this.#ibv('ibv_query_qp');
    const initial = room(QP_INIT_ATTR.size);
    this.#check('ibv_query_qp', `queue pair ${number}`, queryQp(address, struct, QP_STATUS_MASK, initial));
    return readQpStatus(struct);
  }

  destroyQp(qp: VerbsHandle): void {
    this.#giveBack(use(qp, Qp, 'ibv_destroy_qp'), this.#ibv('ibv_destroy_qp').destroyQp, 'ibv_destroy_qp');
  }

  lend(handle: VerbsHandle): VerbsLoan {
    const { address, context, pd, sendCq, receiveCq, ...shape } = use(handle, Qp, 'ibv_post_send');
    const addresses = {
      context: context.address,
      pd: pd.address,
      qp: address,
      sendCq: sendCq.address,
      receiveCq: receiveCq.address,
    };
    return { ...shape, device: context.name, addresses };
  }

  borrow(loan: VerbsLoan): Qp {
    const { device, type, addresses } = loan;
    const functions = (this.#functionsOf ??= contextFunctions(this.#libc))(addresses.context);
    // Apart from what this port has opened: its events have no part in it.
    const context = new DeviceContext(addresses.context, device, -1, 0, functions);
    const pd = new Pd(addresses.pd, context);
    const sendCq = new Cq(addresses.sendCq, context, undefined, 0);
    const isOne = addresses.receiveCq === addresses.sendCq;
    const receiveCq = isOne ? sendCq : new Cq(addresses.receiveCq, context, undefined, 0);
    return new Qp(addresses.qp, pd, type, sendCq, receiveCq, loan);
  }

  giveBack(handle: VerbsHandle): void {
    const { context } = use(handle, Qp, 'ibv_post_send');
    for (const part of context.parts.values()) if (part instanceof Part) part.address = 0;
    context.parts.clear();
    context.address = 0;
  }

  createAh(handle: VerbsHandle, path: VerbsPath): Ah {
    const pd = use(handle, Pd, 'ibv_create_ah');
    const struct = room(AH_ATTR.size);
    writePath(struct, path, 'ibv_create_ah');
    const { createAh } = this.#ibv('ibv_create_ah');
    return new Ah(this.#made('ibv_create_ah', path.route?.gid ?? `LID ${path.lid}`, createAh(pd.address, struct)), pd);
  }

  async createAhAsync(handle: VerbsHandle, path: VerbsPath): Promise<Ah> {
    const operation = 'ibv_create_ah';
    const pd = use(handle, Pd, operation);
    const struct = room(AH_ATTR.size);
    writePath(struct, path, operation);
    const outcome = this.#ibv(operation).createAhLater(pd.address, this.#libc.addressOf(struct));
    const { result, errno } = await keeping(struct, outcome);
    if (result === 0) refuse(errno, operation, path.route?.gid ?? `LID ${path.lid}`);
    return new Ah(result, pd);
  }

  destroyAh(ah: VerbsHandle): void {
    this.#giveBack(use(ah, Ah, 'ibv_destroy_ah'), this.#ibv('ibv_destroy_ah').destroyAh, 'ibv_destroy_ah');
  }

  postSend(handle: VerbsHandle, requests: SendRequests, first: number, count: number): number {
    const qp = isOpenQp(handle) ? handle : use(handle, Qp, 'ibv_post_send');
    checkSlots('ibv_post_send', requests, first, count);
    if (count === 0) return 0;
    const { slots } = requests;
    for (let i = 0, slot = first; i < count; i++) {
      if (!requests.isSound(slot, qp.pd, qp.type === 'ud'))
        throw invalid(
          'ibv_post_send',
          `slot ${slot} needs an open destination or window of the same protection domain`,
        );
      slot = slot + 1 === slots ? 0 : slot + 1;
    }
    return this.#post(qp, qp.context.functions.postSend, requests, first, count, 'ibv_post_send');
  }

  postReceive(handle: VerbsHandle, requests: ReceiveRequests, first: number, count: number): number {
    const qp = isOpenQp(handle) ? handle : use(handle, Qp, 'ibv_post_recv');
    checkSlots('ibv_post_recv', requests, first, count);
    if (count === 0) return 0;
    return this.#post(qp, qp.context.functions.postRecv, requests, first, count, 'ibv_post_recv');
  }

  #post(
    qp: Qp,
    call: CFunction,
    requests: SendRequests | ReceiveRequests,
    first: number,
    count: number,
    operation: string,
  ): number {
    const { slots } = requests;
    const last = first + count - 1 < slots ? first + count - 1 : first + count - 1 - slots;
    const out = this.#out;
    out[0] = out[1] = 0;
    requests.cut(last);
    const result = call(qp.address, requests.addressOf(first), this.#outAddress);
    // Read errno before any other call can change it.
    const errno = result === 0 ? 0 : this.#errno(result);
    requests.join(last);
    if (errno === 0) return count;
    const bad = out[0] + out[1] * 4294967296;
    const taken = bad === 0 ? 0 : (requests.slotAt(bad) - first + slots) % slots;
    return taken > 0 ? taken : refuse(errno, operation, `queue pair ${qp.number}`);
  }

  #loaded(): Libibverbs | string {
    if (typeof this.#library === 'object') return this.#library;
    // A failed load is tried again next time.
    return (this.#library = this.#load(this.#libc));
  }

  #ibv(operation: string): Libibverbs {
    const library = this.#loaded();
    if (typeof library === 'string') throw new DmaError({ code: 'ENOTSUP', operation, reason: library });
    return library;
  }

  #setNonBlocking(fd: number): void {
    const libc = this.#libc;
    const flags = libc.fcntl(fd, F_GETFL, 0);
    if (flags === -1 || libc.fcntl(fd, F_SETFL, flags | O_NONBLOCK) === -1) fail(libc.errno(), 'fcntl', `fd ${fd}`);
  }

  #mr(address: number, pd: Pd): Mr {
    return new Mr(address, pd, this.#libc.peek(address + MR.lkey), this.#libc.peek(address + MR.rkey));
  }

  /**
   * Returns the address of the created object; throws if it is 0. Called last, so that nothing runs between the call
   * and reading errno.
   */
  #made(operation: string, subject: string, address: number): number {
    return address === 0 ? refuse(this.#libc.errno(), operation, subject) : address;
  }

  /** Functions of libibverbs and its providers return 0, an errno, a negative errno, or -1 with errno set. */
  #check(operation: string, subject: string, result: number): void {
    if (result !== 0) this.#fail(result, operation, subject);
  }

  #fail(result: number, operation: string, subject: string): never {
    return refuse(this.#errno(result), operation, subject);
  }

  #errno(result: number): number {
    return result === -1 ? this.#libc.errno() : Math.abs(result);
  }

  /** Did reading events return one, or would it have blocked? */
  #wasThere(operation: string, subject: string, result: number): boolean {
    if (result === 0) return true;
    const errno = this.#errno(result);
    return errno === ERRNO.EAGAIN ? false : refuse(errno, operation, subject);
  }

  #giveBack(part: Part, call: CFunction, operation: string): void {
    this.#check(operation, part.context.name, call(part.address));
    this.#forget(part);
  }

  #forget(part: Part): void {
    part.context.parts.delete(part.address);
    part.address = 0;
  }
}

/** The checked arguments of ibv_reg_mr_iova2. */
function registerArguments(
  pd: Pd,
  { va, length, access, iova = va }: VerbsMrOptions,
  operation: string,
): [pd: number, va: number, bytes: number | bigint, iova: number, access: number] {
  const implicit = isImplicit(va, length);
  if (!implicit) checkRange(operation, va, length);
  if (!isAddress(iova)) throw invalid(operation, `the iova ${iova} is not an address`);
  checkNumber(operation, 'access', access, MAX_U32);
  return [pd.address, va, implicit ? 2n ** 64n - 1n : length, iova, access];
}

function isImplicit(va: number, length: number): boolean {
  return length === Infinity && va === 0;
}

function registered({ va, length }: VerbsMrOptions): string {
  return isImplicit(va, length) ? 'the whole address space' : `${length} bytes at ${hex(va)}`;
}

/** An open region can only fail for this reason: some drivers return EINVAL while a window is bound to it. */
function boundToWindow(error: unknown, mr: Mr): unknown {
  if (!isDmaError(error, 'EINVAL') || !hasWindows(mr.pd)) return error;
  return error.with({ code: 'EBUSY', reason: 'a memory window is bound to the region', cause: error });
}

function hasWindows(pd: Pd): boolean {
  return [...pd.context.parts.values()].some((part) => part instanceof Mw && part.pd === pd);
}

/**
 * Awaits a call on another thread that only has the address of `struct`, which must not be garbage-collected before.
 */
async function keeping<T>(struct: DataView, call: Promise<T>): Promise<T> {
  const result = await call;
  // The read afterwards keeps it alive.
  return struct.byteLength > 0 ? result : call;
}

/** A zeroed struct at a fixed address. */
function room(bytes: number): DataView {
  return new DataView(new ArrayBuffer(bytes));
}
