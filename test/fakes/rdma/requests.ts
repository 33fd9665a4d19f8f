/** For tests: requests and completions in the layout of libibverbs. See fabric.ts. */
import { DmaError } from '../../../src/errors.js';
import * as abi from '../../../src/platform/rdma/abi/requests.js';
import type { SendRequests } from '../../../src/platform/rdma/verbs-work.js';
import type { Done, FakeQp, Segment, Send } from './objects.js';
import { ATOMICS } from './transfers.js';

/** The bytes at an address. */
type Words = (address: number, length: number, operation: string) => DataView;

/** A request that does nothing. */
export const NO_SEND: Send = {
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

/** The segments of a send or receive request. */
export function readSegments(words: Words, request: DataView, operation: string): Segment[] {
  const list = wide(request, abi.SEND_WR.sg_list);
  return Array.from({ length: request.getInt32(abi.SEND_WR.num_sge, true) }, (_, index) => {
    const segment = words(list + index * abi.SGE.size, abi.SGE.size, operation);
    return {
      va: wide(segment, abi.SGE.addr),
      length: segment.getUint32(abi.SGE.length, true),
      lkey: segment.getUint32(abi.SGE.lkey, true),
    };
  });
}

/** @throws DmaError EINVAL for a slot that leads to what is closed */
export function readSend(words: Words, requests: SendRequests, slot: number, qp: FakeQp): Send {
  if (!requests.isSound(slot, qp.pd, qp.type === 'ud'))
    throw new DmaError({
      code: 'EINVAL',
      operation: 'ibv_post_send',
      reason: `slot ${slot} leads to what is closed`,
    });
  const request = words(requests.addressOf(slot), abi.SEND_WR.size, 'ibv_post_send');
  const u32 = (at: number): number => request.getUint32(at, true);
  const { SEND_WR } = abi;
  const opcode = u32(SEND_WR.opcode);
  const hasKey = opcode === abi.IBV_WR_LOCAL_INV || opcode === abi.IBV_WR_SEND_WITH_INV;
  return {
    id: wide(request, SEND_WR.wr_id),
    segments: readSegments(words, request, 'ibv_post_send'),
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
}

/** 64 bits, below 2^53. */
export function wide(from: DataView, at: number): number {
  return from.getUint32(at, true) + from.getUint32(at + 4, true) * 2 ** 32;
}

/** Writes completions. */
export function writeCompletions(into: DataView, all: readonly Done[]): void {
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
