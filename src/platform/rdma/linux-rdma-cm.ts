/** The RDMA connection manager on Linux, by librdmacm. */
import { DmaError, ERRNO } from '../../errors.js';
import { fail } from '../linux/libc.js';
import type { Libc } from '../linux/libc.js';
import { loadLibrdmacm } from './librdmacm.js';
import type { Librdmacm } from './librdmacm.js';
import type { CmAddress, CmChannel, CmEvent, CmId, CmParameters, RdmaCmPort } from './rdma-cm-port.js';
import { readSocketAddress, SOCKADDR_ROOM, writeSocketAddress } from '../linux/socket-addresses.js';
import { F_GETFL, F_SETFL, O_NONBLOCK } from '../uapi/fcntl.js';
import { CONTEXT } from './abi/context.js';
import { DEVICE } from './abi/devices.js';
import { QP_ATTR } from './abi/queues.js';
import {
  CM_EVENTS,
  RDMA_CM_EVENT,
  RDMA_CM_ID,
  RDMA_CONN_PARAM,
  RDMA_EVENT_CHANNEL,
  RDMA_PS_TCP,
} from './abi/rdma-cm.js';
import { checkNumber, readQpAttributes, readText } from './verbs-attributes.js';
import { use } from './verbs-checks.js';
import { peekPointer } from './verbs-handles.js';
import type { VerbsHandle, VerbsQpAttributes } from './verbs-types.js';

const MAX_INT = 0x7fffffff;
/** The most bytes of private data: `private_data_len` is a byte. */
const MOST_DATA = 255;

/** The {@link RdmaCmPort} that calls librdmacm, which is loaded on first use. */
export function linuxRdmaCm(libc: Libc, load: (libc: Libc) => Librdmacm | string = loadLibrdmacm): RdmaCmPort {
  return new LinuxRdmaCm(libc, load);
}

class EventChannel implements CmChannel {
  /** Its ids by address. */
  readonly ids = new Map<number, Id>();

  constructor(
    public address: number,
    readonly fd: number,
  ) {}
}

class Id implements CmId {
  constructor(
    public address: number,
    readonly channel: EventChannel,
  ) {
    channel.ids.set(address, this);
  }
}

class LinuxRdmaCm implements RdmaCmPort {
  readonly #libc: Libc;
  readonly #load: (libc: Libc) => Librdmacm | string;
  #library: Librdmacm | string | undefined;
  /** Output of calls that return a pointer. */
  readonly #out = new Uint32Array(new ArrayBuffer(8));

  constructor(libc: Libc, load: (libc: Libc) => Librdmacm | string) {
    this.#libc = libc;
    this.#load = load;
  }

  get limitation(): string | undefined {
    const library = this.#loaded();
    return typeof library === 'string' ? library : undefined;
  }

  createChannel(): EventChannel {
    const operation = 'rdma_create_event_channel';
    const libc = this.#libc;
    const { createEventChannel, destroyEventChannel } = this.#cm(operation);
    const address = createEventChannel();
    if (address === 0) fail(libc.errno(), operation, '/dev/infiniband/rdma_cm');
    const fd = libc.peek(address + RDMA_EVENT_CHANNEL.fd);
    const flags = libc.fcntl(fd, F_GETFL, 0);
    if (flags !== -1 && libc.fcntl(fd, F_SETFL, flags | O_NONBLOCK) !== -1) return new EventChannel(address, fd);
    const errno = libc.errno();
    destroyEventChannel(address);
    return fail(errno, 'fcntl', `fd ${fd}`);
  }

  destroyChannel(handle: VerbsHandle): void {
    const operation = 'rdma_destroy_event_channel';
    const channel = use(handle, EventChannel, operation);
    if (channel.ids.size > 0)
      throw new DmaError({ code: 'EBUSY', operation, reason: `${channel.ids.size} ids use the channel` });
    this.#cm(operation).destroyEventChannel(channel.address);
    channel.address = 0;
  }

  nextEvent(handle: VerbsHandle): CmEvent | undefined {
    const operation = 'rdma_get_cm_event';
    const channel = use(handle, EventChannel, operation);
    const { getCmEvent, ackCmEvent, destroyId } = this.#cm(operation);
    const out = this.#out;
    if (getCmEvent(channel.address, out) !== 0) {
      const errno = this.#libc.errno();
      return errno === ERRNO.EAGAIN ? undefined : fail(errno, operation);
    }
    const address = out[0] + out[1] * 4294967296;
    const struct = this.#copy(address, RDMA_CM_EVENT.size);
    const connection = RDMA_CM_EVENT['param.conn'];
    const name = CM_EVENTS[struct.getUint32(RDMA_CM_EVENT.event, true)] ?? 'of no known type';
    const dataAt = pointer(struct, connection + RDMA_CONN_PARAM.private_data);
    const length = dataAt === 0 ? 0 : struct.getUint8(connection + RDMA_CONN_PARAM.private_data_len);
    const data = length === 0 ? new Uint8Array(0) : new Uint8Array(this.#copy(dataAt, length).buffer);
    ackCmEvent(address);
    const idAt = pointer(struct, RDMA_CM_EVENT.id);
    const known = channel.ids.get(idAt);
    const listener = channel.ids.get(pointer(struct, RDMA_CM_EVENT.listen_id));
    if (known === undefined && listener === undefined) {
      if (name === 'CONNECT_REQUEST') destroyId(idAt);
      throw new DmaError({ code: 'EIO', operation, reason: `an event ${name} without an id` });
    }
    return {
      name,
      status: struct.getInt32(RDMA_CM_EVENT.status, true),
      id: known ?? new Id(idAt, channel),
      listener,
      data,
      responderDepth: struct.getUint8(connection + RDMA_CONN_PARAM.responder_resources),
      initiatorDepth: struct.getUint8(connection + RDMA_CONN_PARAM.initiator_depth),
    };
  }

  createId(handle: VerbsHandle): Id {
    const operation = 'rdma_create_id';
    const channel = use(handle, EventChannel, operation);
    const out = this.#out;
    this.#check(operation, '', this.#cm(operation).createId(channel.address, out, 0, RDMA_PS_TCP));
    return new Id(out[0] + out[1] * 4294967296, channel);
  }

  destroyId(handle: VerbsHandle): void {
    const operation = 'rdma_destroy_id';
    const id = use(handle, Id, operation);
    this.#check(operation, '', this.#cm(operation).destroyId(id.address));
    id.channel.ids.delete(id.address);
    id.address = 0;
  }

  bind(handle: VerbsHandle, { host, port }: CmAddress): void {
    const { address } = use(handle, Id, 'rdma_bind_addr');
    const struct = writeSocketAddress(host, port, 'rdma_bind_addr');
    this.#check('rdma_bind_addr', `${host} port ${port}`, this.#cm('rdma_bind_addr').bindAddr(address, struct));
  }

  listen(handle: VerbsHandle, backlog: number): void {
    const { address } = use(handle, Id, 'rdma_listen');
    checkNumber('rdma_listen', 'backlog', backlog, MAX_INT);
    this.#check('rdma_listen', '', this.#cm('rdma_listen').listen(address, backlog));
  }

  resolveAddress(handle: VerbsHandle, { host, port }: CmAddress, timeoutMs: number): void {
    const operation = 'rdma_resolve_addr';
    const { address } = use(handle, Id, operation);
    checkNumber(operation, 'timeoutMs', timeoutMs, MAX_INT);
    const struct = writeSocketAddress(host, port, operation);
    this.#check(operation, host, this.#cm(operation).resolveAddr(address, 0, struct, timeoutMs));
  }

  resolveRoute(handle: VerbsHandle, timeoutMs: number): void {
    const { address } = use(handle, Id, 'rdma_resolve_route');
    checkNumber('rdma_resolve_route', 'timeoutMs', timeoutMs, MAX_INT);
    this.#check('rdma_resolve_route', '', this.#cm('rdma_resolve_route').resolveRoute(address, timeoutMs));
  }

  device(handle: VerbsHandle): string | undefined {
    const { address } = use(handle, Id, 'rdma_create_id');
    const context = peekPointer(this.#libc, address + RDMA_CM_ID.verbs);
    if (context === 0) return undefined;
    return readText(this.#copy(peekPointer(this.#libc, context + CONTEXT.device), DEVICE.size), DEVICE.name, 64);
  }

  local(handle: VerbsHandle): CmAddress | undefined {
    const { address } = use(handle, Id, 'rdma_get_local_addr');
    return readSocketAddress(this.#copy(address + RDMA_CM_ID['route.addr.src_addr'], SOCKADDR_ROOM));
  }

  remote(handle: VerbsHandle): CmAddress | undefined {
    const { address } = use(handle, Id, 'rdma_get_peer_addr');
    return readSocketAddress(this.#copy(address + RDMA_CM_ID['route.addr.dst_addr'], SOCKADDR_ROOM));
  }

  qpAttributes(handle: VerbsHandle, state: number): VerbsQpAttributes {
    const operation = 'rdma_init_qp_attr';
    const { address } = use(handle, Id, operation);
    checkNumber(operation, 'state', state, MAX_INT);
    const struct = new DataView(new ArrayBuffer(QP_ATTR.size));
    struct.setUint32(QP_ATTR.qp_state, state, true);
    this.#check(operation, `state ${state}`, this.#cm(operation).initQpAttr(address, struct, this.#out));
    return readQpAttributes(struct, this.#out[0]);
  }

  connect(handle: VerbsHandle, parameters: CmParameters): void {
    const { address } = use(handle, Id, 'rdma_connect');
    const struct = this.#parameters(parameters, 'rdma_connect');
    this.#check('rdma_connect', '', this.#cm('rdma_connect').connect(address, struct));
  }

  accept(handle: VerbsHandle, parameters: CmParameters): void {
    const { address } = use(handle, Id, 'rdma_accept');
    const struct = this.#parameters(parameters, 'rdma_accept');
    this.#check('rdma_accept', '', this.#cm('rdma_accept').accept(address, struct));
  }

  establish(handle: VerbsHandle): void {
    const { address } = use(handle, Id, 'rdma_establish');
    this.#check('rdma_establish', '', this.#cm('rdma_establish').establish(address));
  }

  reject(handle: VerbsHandle, data: Uint8Array): void {
    const { address } = use(handle, Id, 'rdma_reject');
    checkNumber('rdma_reject', 'the length of the data', data.length, MOST_DATA);
    const from = data.length === 0 ? 0 : data;
    this.#check('rdma_reject', '', this.#cm('rdma_reject').reject(address, from, data.length));
  }

  disconnect(handle: VerbsHandle): void {
    const { address } = use(handle, Id, 'rdma_disconnect');
    this.#check('rdma_disconnect', '', this.#cm('rdma_disconnect').disconnect(address));
  }

  #loaded(): Librdmacm | string {
    if (typeof this.#library === 'object') return this.#library;
    // A failed load is tried again next time.
    return (this.#library = this.#load(this.#libc));
  }

  #cm(operation: string): Librdmacm {
    const library = this.#loaded();
    if (typeof library === 'string') throw new DmaError({ code: 'ENOTSUP', operation, reason: library });
    return library;
  }

  /** A `struct rdma_conn_param` and its data, in one block of memory. */
  #parameters(parameters: CmParameters, operation: string): Uint8Array {
    const { queuePair, data, responderDepth, initiatorDepth, retries, rnrRetries } = parameters;
    checkNumber(operation, 'queuePair', queuePair, 0xffffff);
    checkNumber(operation, 'the length of the data', data.length, MOST_DATA);
    checkNumber(operation, 'responderDepth', responderDepth, 255);
    checkNumber(operation, 'initiatorDepth', initiatorDepth, 255);
    checkNumber(operation, 'retries', retries, 7);
    checkNumber(operation, 'rnrRetries', rnrRetries, 7);
    const bytes = new Uint8Array(new ArrayBuffer(RDMA_CONN_PARAM.size + data.length));
    const struct = new DataView(bytes.buffer);
    bytes.set(data, RDMA_CONN_PARAM.size);
    if (data.length > 0) {
      const dataAt = this.#libc.addressOf(bytes) + RDMA_CONN_PARAM.size;
      struct.setBigUint64(RDMA_CONN_PARAM.private_data, BigInt(dataAt), true);
    }
    struct.setUint8(RDMA_CONN_PARAM.private_data_len, data.length);
    struct.setUint8(RDMA_CONN_PARAM.responder_resources, responderDepth);
    struct.setUint8(RDMA_CONN_PARAM.initiator_depth, initiatorDepth);
    struct.setUint8(RDMA_CONN_PARAM.retry_count, retries);
    struct.setUint8(RDMA_CONN_PARAM.rnr_retry_count, rnrRetries);
    struct.setUint32(RDMA_CONN_PARAM.qp_num, queuePair, true);
    return bytes;
  }

  /** A copy of memory of the C library. */
  #copy(address: number, length: number): DataView {
    return new DataView(this.#libc.view(address, length).slice(0));
  }

  /** Throws on failure. Nothing may run between the call and this, or errno is lost. */
  #check(operation: string, subject: string, result: number): void {
    if (result !== 0) fail(this.#libc.errno(), operation, subject === '' ? undefined : subject);
  }
}

function pointer(struct: DataView, at: number): number {
  return struct.getUint32(at, true) + struct.getUint32(at + 4, true) * 4294967296;
}
