/** For tests: what requests of an emulated fabric do to the memory and the queues of both ends. See fabric.ts. */
import * as memoryAbi from '../../../src/platform/rdma/abi/memory.js';
import { IBV_QPS_ERR, IBV_QPS_RTR, IBV_QPS_RTS } from '../../../src/platform/rdma/abi/queues.js';
import * as abi from '../../../src/platform/rdma/abi/requests.js';
import {
  tell,
  type Done,
  type FakeAh,
  type FakeCq,
  type FakeDevice,
  type FakeMr,
  type FakeMw,
  type FakePd,
  type FakeQp,
  type Segment,
  type Send,
} from './objects.js';

const GRH = 40;

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
export const ATOMICS: readonly number[] = [abi.IBV_WR_ATOMIC_CMP_AND_SWP, abi.IBV_WR_ATOMIC_FETCH_AND_ADD];
const FETCHES: readonly number[] = [abi.IBV_WR_RDMA_READ, ...ATOMICS];

/** A finding of the side that is asked: what its queue pair does then is in `fault`. */
type Refusal = 'access' | 'request' | 'wait' | 'absent';

/** What moves between queue pairs. */
export interface Transfers {
  /** Completes a request. */
  complete(qp: FakeQp, send: Send, status: number, bytes?: number): void;
  /** Completes a receive. */
  received(qp: FakeQp, id: number, status: number, more: Partial<Done>): void;
  /** The queue pair fails: all that is in it is flushed. */
  stop(qp: FakeQp): void;
  /** Binds a window, or unbinds it. @returns whether it could be done */
  bind(device: FakeDevice, mw: FakeMw, to: Send['window'] | undefined): boolean;
  /** Does the requests of a queue pair, as far as its peer is ready for them. */
  run(qp: FakeQp): void;
}

/**
 * @param pairs all queue pairs of the fabric, by GID and number
 * @param open what is open on this host, by its address
 */
export function transfersOf(pairs: ReadonlyMap<string, FakeQp>, open: ReadonlyMap<number, object>): Transfers {
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
      const to = pairs.get(`${ah?.path.route?.gid ?? ''} ${send.number}`);
      if (to !== undefined && to.type === 'ud' && to.status.state !== IBV_QPS_ERR && to.status.qkey === send.qkey)
        deliver(qp, to, send, local, bytes, GRH);
      return end(abi.IBV_WC_SUCCESS);
    }
    const to = pairs.get(`${qp.peerGid} ${qp.status.peer}`);
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

  return { complete, received, stop, bind, run };
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
