/** The port for RDMA verbs on a libibverbs made for these tests: what it is called with, and what becomes of its answers. */
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import assert from 'node:assert/strict';
import { ERRNO, isDmaError } from '../../errors.js';
import type { Va } from '../../units.js';
import { loadLibc } from '../linux/libc.js';
import type { CFunction, Libc } from '../linux/libc.js';
import { loadLibibverbs } from './libibverbs.js';
import { linuxPlatform } from '../linux.js';
import { linuxVerbs } from './linux-verbs.js';
import type { Platform } from '../ports.js';
import { portablePlatform } from '../portable.js';
import { failingPlatform, trackingPlatform } from '../../../test/fakes/platform/platforms.js';
import type { TrackingPlatform } from '../../../test/fakes/platform/platforms.js';
import { IBV_ACCESS_LOCAL_WRITE, IBV_ADVISE_MR_ADVICE_PREFETCH } from './abi/memory.js';
import { IBV_QPS_INIT, IBV_QPS_RTR } from './abi/queues.js';
import * as work from './abi/requests.js';
import type { VerbsContext, VerbsHandle, VerbsPd, VerbsQp } from './verbs-types.js';
import { Completions, completionStatusName, ReceiveRequests, SendRequests } from './verbs-work.js';

const FAKE = String.raw`
#define _GNU_SOURCE
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <infiniband/verbs.h>
#undef ibv_query_port
#undef ibv_reg_mr
#undef ibv_reg_mr_iova

static int next_errno, next_style, live, pipes[2], is_old;
static char text[65536];
static struct ibv_device device = { .node_type = IBV_NODE_RNIC, .transport_type = IBV_TRANSPORT_IWARP,
  .name = "fake0", .dev_name = "uverbs7", .dev_path = "/nowhere/u", .ibdev_path = "/nowhere" };
static struct ibv_device *list[] = { &device, NULL };

static void note(const char *format, ...) {
  va_list args;
  va_start(args, format);
  vsnprintf(text + strlen(text), sizeof(text) - strlen(text), format, args);
  va_end(args);
}
const char *fake_text(void) { return text; }
void fake_clear(void) { text[0] = 0; }
int fake_live(void) { return live; }
void fake_old(int old) { is_old = old; }
void fake_fail(int number, int style) { next_errno = number; next_style = style; }
void fake_signal(void *pointer, int type) {
  struct ibv_async_event event = { .event_type = type };
  memcpy(&event, &pointer, 8);
  if (write(pipes[1], &event, sizeof event) < 0) abort();
}
static int refused(void) {
  int number = next_errno;
  next_errno = 0;
  if (number == 0) return 0;
  errno = number;
  return next_style == 0 ? number : next_style == 1 ? -1 : -number;
}
static void *make(size_t size) { live++; return calloc(1, size); }
static int drop(void *it) { int r = refused(); if (r == 0) { live--; free(it); } return r; }
#define ORDERLY if (refused()) return NULL

struct ibv_device **ibv_get_device_list(int *n) { ORDERLY; live++; return list; }
void ibv_free_device_list(struct ibv_device **l) { live--; }

static struct ibv_mw *alloc_mw(struct ibv_pd *pd, enum ibv_mw_type type) {
  ORDERLY;
  struct ibv_mw *mw = make(sizeof *mw); mw->rkey = 0x700; mw->type = type; return mw;
}
static int bind_mw(struct ibv_qp *qp, struct ibv_mw *mw, struct ibv_mw_bind *b) {
  note("bind %llu %u %p %llx %llu %x\n", (unsigned long long)b->wr_id, b->send_flags, b->bind_info.mr == NULL ? "no" : "mr",
    (unsigned long long)b->bind_info.addr, (unsigned long long)b->bind_info.length, b->bind_info.mw_access_flags);
  mw->rkey++;
  return refused();
}
static int dealloc_mw(struct ibv_mw *mw) { return drop(mw); }
static int poll_cq(struct ibv_cq *cq, int n, struct ibv_wc *wc) {
  int r = refused();
  if (r) return r;
  for (int i = 0; i < n && i < 3; i++)
    wc[i] = (struct ibv_wc){ .wr_id = 0x123456789ULL + i, .status = IBV_WC_REM_ACCESS_ERR, .opcode = IBV_WC_RECV, .vendor_err = 77,
      .byte_len = 4096 + i, .imm_data = __builtin_bswap32(0x80000001u), .qp_num = 17, .src_qp = 18, .wc_flags = IBV_WC_WITH_IMM };
  return n < 3 ? n : 3;
}
static int req_notify_cq(struct ibv_cq *cq, int solicited) { note("notify %d\n", solicited); return refused(); }
static void segments(struct ibv_sge *sge, int n) {
  for (int i = 0; i < n; i++) note(" [%llx %u %x]", (unsigned long long)sge[i].addr, sge[i].length, sge[i].lkey);
  note("\n");
}
static int post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad) {
  for (; wr; wr = wr->next) {
    if (wr->wr_id == 999) { *bad = wr; fake_fail(ENOMEM, 0); return refused(); }
    note("%llu op%d f%u", (unsigned long long)wr->wr_id, wr->opcode, wr->send_flags);
    switch (wr->opcode) {
    case IBV_WR_RDMA_WRITE_WITH_IMM: note(" i%x", __builtin_bswap32(wr->imm_data)); /* and */
    case IBV_WR_RDMA_WRITE: case IBV_WR_RDMA_READ: note(" %llx %x", (unsigned long long)wr->wr.rdma.remote_addr, wr->wr.rdma.rkey); break;
    case IBV_WR_SEND_WITH_IMM: note(" i%x", __builtin_bswap32(wr->imm_data)); break;
    case IBV_WR_SEND_WITH_INV: case IBV_WR_LOCAL_INV: note(" %x", wr->invalidate_rkey); break;
    case IBV_WR_ATOMIC_CMP_AND_SWP: case IBV_WR_ATOMIC_FETCH_AND_ADD:
      note(" %llx %x %llx %llx", (unsigned long long)wr->wr.atomic.remote_addr, wr->wr.atomic.rkey,
        (unsigned long long)wr->wr.atomic.compare_add, wr->opcode == IBV_WR_ATOMIC_FETCH_AND_ADD ? 0 : (unsigned long long)wr->wr.atomic.swap); break;
    case IBV_WR_BIND_MW: note(" %x %llx %llu %x", wr->bind_mw.rkey, (unsigned long long)wr->bind_mw.bind_info.addr,
      (unsigned long long)wr->bind_mw.bind_info.length, wr->bind_mw.bind_info.mw_access_flags); break;
    default: if (qp->qp_type == IBV_QPT_UD) note(" to %u %x %u", wr->wr.ud.remote_qpn, wr->wr.ud.remote_qkey, wr->wr.ud.ah->handle);
    }
    segments(wr->sg_list, wr->num_sge);
  }
  return refused();
}
static int post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad) {
  for (; wr; wr = wr->next) { note("%llu", (unsigned long long)wr->wr_id); segments(wr->sg_list, wr->num_sge); }
  return refused();
}
static int query_port(struct ibv_context *c, uint8_t port, struct ibv_port_attr *attr, size_t size) {
  note("port %u %zu\n", port, size == sizeof *attr ? (size_t)0 : size);
  *attr = (struct ibv_port_attr){ .state = IBV_PORT_ACTIVE, .max_mtu = IBV_MTU_4096, .active_mtu = IBV_MTU_2048, .gid_tbl_len = 3,
    .max_msg_sz = 1u << 30, .lid = 5, .sm_lid = 6, .pkey_tbl_len = 7, .link_layer = IBV_LINK_LAYER_INFINIBAND, .flags = IBV_QPF_GRH_REQUIRED };
  return refused();
}
static int advise_mr(struct ibv_pd *pd, enum ibv_advise_mr_advice advice, uint32_t flags, struct ibv_sge *sge, uint32_t n) {
  note("advise %d %u", advice, flags);
  segments(sge, n);
  return refused();
}
int ibv_query_device(struct ibv_context *c, struct ibv_device_attr *attr) {
  note("query\n");
  *attr = (struct ibv_device_attr){ .fw_ver = "1.2.3", .node_guid = __builtin_bswap64(0x505400fffe123456ULL), .max_mr_size = ~0ULL,
    .page_size_cap = ~0xfffULL, .vendor_id = 0x15b3, .max_qp = 10, .max_mr = 11, .max_sge = 12, .max_qp_rd_atom = 13, .max_qp_init_rd_atom = 14,
    .atomic_cap = IBV_ATOMIC_HCA, .phys_port_cnt = 2 };
  return refused();
}
static int query_device_ex(struct ibv_context *c, const struct ibv_query_device_ex_input *in, struct ibv_device_attr_ex *attr, size_t size) {
  int r = refused();
  if (r || in || size != sizeof *attr) { memset(attr, 0xff, sizeof *attr); return r; }
  ibv_query_device(c, &attr->orig_attr);
  attr->odp_caps.general_caps = IBV_ODP_SUPPORT;
  attr->odp_caps.per_transport_caps.rc_odp_caps = IBV_ODP_SUPPORT_WRITE;
  attr->phys_port_cnt_ex = 2;
  return 0;
}
struct ibv_context *ibv_open_device(struct ibv_device *d) {
  ORDERLY;
  if (pipe(pipes)) abort();
  struct verbs_context *v = make(sizeof *v);
  v->sz = is_old ? 8 : sizeof *v;
  v->query_port = query_port; v->advise_mr = advise_mr; v->query_device_ex = query_device_ex;
  v->context.abi_compat = __VERBS_ABI_IS_EXTENDED;
  v->context.device = d; v->context.async_fd = pipes[0]; v->context.num_comp_vectors = 4;
  struct ibv_context_ops *ops = &v->context.ops;
  ops->poll_cq = poll_cq; ops->req_notify_cq = req_notify_cq; ops->post_send = post_send; ops->post_recv = post_recv;
  if (!is_old) { ops->alloc_mw = alloc_mw; ops->bind_mw = bind_mw; ops->dealloc_mw = dealloc_mw; }
  return &v->context;
}
int ibv_close_device(struct ibv_context *c) { close(pipes[0]); close(pipes[1]); return drop((char *)c - offsetof(struct verbs_context, context)); }
int ibv_query_port(struct ibv_context *c, uint8_t port, struct _compat_ibv_port_attr *attr) { note("old "); return query_port(c, port, (void *)attr, 0); }
ssize_t _ibv_query_gid_table(struct ibv_context *c, struct ibv_gid_entry *entries, size_t max, uint32_t flags, size_t size) {
  note("gids %zu\n", max);
  if (refused()) return -EIO;
  entries[0] = (struct ibv_gid_entry){ .gid_index = 1, .port_num = 2, .gid_type = IBV_GID_TYPE_ROCE_V2, .ndev_ifindex = 3, .gid.raw = { 0xfe, 0x80, [15] = 0x1f } };
  return 1;
}
int ibv_get_async_event(struct ibv_context *c, struct ibv_async_event *e) { return read(c->async_fd, e, sizeof *e) == sizeof *e ? 0 : -1; }
void ibv_ack_async_event(struct ibv_async_event *e) { note("ack %d\n", e->event_type); }
#define PD_PART(type) struct type *it = make(sizeof *it)
struct ibv_pd *ibv_alloc_pd(struct ibv_context *c) { ORDERLY; PD_PART(ibv_pd); it->context = c; return it; }
int ibv_dealloc_pd(struct ibv_pd *pd) { return drop(pd); }
struct ibv_mr *ibv_reg_mr_iova2(struct ibv_pd *pd, void *addr, size_t length, uint64_t iova, unsigned int access) {
  ORDERLY; PD_PART(ibv_mr);
  note("reg %zx %zx %llx %x\n", (size_t)addr, length, (unsigned long long)iova, access);
  it->lkey = 0xfffffff0u; it->rkey = 0x80000001u; return it;
}
struct ibv_mr *ibv_reg_dmabuf_mr(struct ibv_pd *pd, uint64_t offset, size_t length, uint64_t iova, int fd, int access) {
  ORDERLY; PD_PART(ibv_mr);
  note("dmabuf %llx %zx %llx %d %x\n", (unsigned long long)offset, length, (unsigned long long)iova, fd, access);
  return it;
}
int ibv_dereg_mr(struct ibv_mr *mr) { return drop(mr); }
struct ibv_comp_channel *ibv_create_comp_channel(struct ibv_context *c) { ORDERLY; PD_PART(ibv_comp_channel); it->fd = c->async_fd; return it; }
int ibv_destroy_comp_channel(struct ibv_comp_channel *it) { return drop(it); }
int ibv_get_cq_event(struct ibv_comp_channel *ch, struct ibv_cq **cq, void **context) {
  struct ibv_async_event e;
  if (read(ch->fd, &e, sizeof e) != sizeof e) return -1;
  memcpy(cq, &e, 8); *context = NULL; return 0;
}
void ibv_ack_cq_events(struct ibv_cq *cq, unsigned int n) { note("acks %u\n", n); }
struct ibv_cq *ibv_create_cq(struct ibv_context *c, int cqe, void *ctx, struct ibv_comp_channel *ch, int vector) {
  ORDERLY; PD_PART(ibv_cq);
  note("cq %d %d %d\n", cqe, ch != NULL, vector);
  it->context = c; it->cqe = cqe + 1; return it;
}
int ibv_resize_cq(struct ibv_cq *cq, int cqe) { cq->cqe = cqe + 2; return refused(); }
int ibv_destroy_cq(struct ibv_cq *cq) { return drop(cq); }
struct ibv_qp *ibv_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *a) {
  ORDERLY; PD_PART(ibv_qp);
  note("qp %d %d %u %u %u %u %u %d\n", a->send_cq != NULL, a->recv_cq != NULL, a->cap.max_send_wr, a->cap.max_recv_wr, a->cap.max_send_sge,
    a->cap.max_recv_sge, a->cap.max_inline_data, a->sq_sig_all);
  a->cap.max_send_wr++;
  it->context = pd->context; it->qp_type = a->qp_type; it->qp_num = 17; return it;
}
int ibv_modify_qp(struct ibv_qp *qp, struct ibv_qp_attr *a, int mask) {
  note("modify %x s%d a%x pk%u p%u q%x m%d peer%u rp%u sp%u t%u r%u rnr%u min%u i%u o%u", mask, a->qp_state, a->qp_access_flags, a->pkey_index, a->port_num,
    a->qkey, a->path_mtu, a->dest_qp_num, a->rq_psn, a->sq_psn, a->timeout, a->retry_cnt, a->rnr_retry, a->min_rnr_timer, a->max_rd_atomic, a->max_dest_rd_atomic);
  note(" g%d %02x..%02x %u %u %u %x %u %u\n", a->ah_attr.is_global, a->ah_attr.grh.dgid.raw[0], a->ah_attr.grh.dgid.raw[15], a->ah_attr.grh.sgid_index,
    a->ah_attr.grh.hop_limit, a->ah_attr.grh.traffic_class, a->ah_attr.grh.flow_label, a->ah_attr.dlid, a->ah_attr.port_num);
  return refused();
}
int ibv_query_qp(struct ibv_qp *qp, struct ibv_qp_attr *a, int mask, struct ibv_qp_init_attr *i) {
  a->qp_state = IBV_QPS_RTS; a->path_mtu = IBV_MTU_512; a->sq_psn = 9; a->timeout = 14; return refused();
}
int ibv_destroy_qp(struct ibv_qp *qp) { return drop(qp); }
struct ibv_ah *ibv_create_ah(struct ibv_pd *pd, struct ibv_ah_attr *a) { ORDERLY; PD_PART(ibv_ah); it->handle = a->dlid; return it; }
int ibv_destroy_ah(struct ibv_ah *ah) { return drop(ah); }
`;

const directory = mkdtempSync(join(tmpdir(), 'verbs-'));
after(() => rmSync(directory, { recursive: true }));

interface Fake {
  readonly libc: Libc;
  readonly platform: TrackingPlatform;
  readonly fail: CFunction;
  readonly live: CFunction;
  readonly old: CFunction;
  readonly signal: CFunction;
  /** What the library was called with since the last time. */
  said(): string[];
}

const fake = build();
const skip = typeof fake === 'string' ? fake : false;

function build(): Fake | string {
  const libc = loadLibc();
  if (typeof libc === 'string') return libc;
  const file = join(directory, 'libfake.so');
  if (spawnSync('gcc', ['--version']).status !== 0) return 'no gcc here';
  const input = '#include <infiniband/verbs.h>\n';
  if (spawnSync('gcc', ['-fsyntax-only', '-x', 'c', '-'], { input }).status !== 0) return 'no libibverbs-dev here';
  execFileSync('gcc', ['-w', '-shared', '-fPIC', '-O1', '-o', file, '-x', 'c', '-'], { input: FAKE });
  const { func } = libc.library(file);
  const text = func('fake_text', 'intptr_t');
  const clear = func('fake_clear', 'void');
  return {
    libc,
    platform: trackingPlatform({
      ...linuxPlatform(libc),
      verbs: linuxVerbs(libc, (each) => loadLibibverbs(each, file)),
    }),
    fail: func('fake_fail', 'void', 'int', 'int'),
    live: func('fake_live', 'int'),
    old: func('fake_old', 'void', 'int'),
    signal: func('fake_signal', 'void', 'intptr_t', 'int'),
    said() {
      const bytes = Buffer.from(libc.view(text(), 65536));
      const lines = bytes.toString('latin1', 0, bytes.indexOf(0)).split('\n').slice(0, -1);
      clear();
      return lines;
    },
  };
}

function given(): Fake {
  assert.ok(typeof fake !== 'string');
  fake.said();
  return fake;
}

/** Runs `use` on a device, and gives all back that it made. */
function onDevice(
  platform: Platform,
  use: (context: VerbsContext, own: <T extends VerbsHandle>(made: T, giveBack: (it: T) => void) => T) => void,
): void {
  const { verbs } = platform;
  const undo: (() => void)[] = [];
  const own = <T extends VerbsHandle>(made: T, giveBack: (it: T) => void): T => {
    undo.push(() => giveBack(made));
    return made;
  };
  try {
    use(own(verbs.open('fake0'), verbs.close), own);
  } finally {
    for (const step of undo.reverse()) step();
  }
}

type Own = <T extends VerbsHandle>(made: T, giveBack: (it: T) => void) => T;

function queuePair(
  { verbs }: Platform,
  own: Own,
  context: VerbsContext,
  type: 'rc' | 'ud' = 'rc',
): { pd: VerbsPd; qp: VerbsQp } {
  const pd = own(verbs.allocatePd(context), verbs.deallocatePd);
  const cq = own(verbs.createCq(context, 8), verbs.destroyCq);
  const qp = own(verbs.createQp(pd, { type, sendCq: cq, receiveCq: cq, sends: 4, sendSges: 2 }), verbs.destroyQp);
  return { pd, qp };
}

test('without the library all is ENOTSUP, and says what to install', { skip: typeof loadLibc() === 'string' }, () => {
  const libc = loadLibc();
  assert.ok(typeof libc !== 'string');
  let loads = 0;
  let name = 'libnone-of-this-name.so.1';
  const verbs = linuxVerbs(libc, (each) => (loads++, loadLibibverbs(each, name)));
  assert.equal(loads, 0);
  assert.match(
    verbs.limitation ?? '',
    /libnone-of-this-name.so.1 .*No such file.*install libibverbs1 and ibverbs-providers/,
  );
  assert.throws(() => verbs.devices(), { code: 'ENOTSUP', operation: 'ibv_get_device_list' });
  assert.throws(() => verbs.open('x'), { code: 'ENOTSUP' });
  // It is looked for again, since it may have been installed.
  assert.equal(loads, 3);
  name = 'libc.so.6';
  assert.match(verbs.limitation ?? '', /ibv_get_device_list/);
  // A library that is there, but not this one.
  const other = loadLibibverbs(libc, 'libc.so.6');
  assert.match(typeof other === 'string' ? other : '', /ibv_get_device_list/);
});

test('without system calls there are no verbs', () => {
  const { verbs } = portablePlatform('a test');
  assert.equal(verbs.limitation, 'a test');
  for (const [name, value] of Object.entries(verbs) as [string, unknown][])
    if (typeof value === 'function')
      assert.throws(
        () => Reflect.apply(value, verbs, []) as unknown,
        (error) => isDmaError(error, 'ENOTSUP') && error.operation.startsWith('ibv_') && error.reason === 'a test',
        name,
      );
});

test('the list of devices, and what one can do', { skip }, () => {
  const { platform, said, fail, live } = given();
  const { verbs } = platform;
  assert.equal(verbs.limitation, undefined);
  assert.deepEqual(verbs.devices(), [
    {
      name: 'fake0',
      guid: '',
      node: 'rnic',
      transport: 'iwarp',
      path: '/nowhere',
      devicePath: '/dev/infiniband/uverbs7',
      parent: undefined,
    },
  ]);
  fail(ERRNO.ENOSYS, 0);
  assert.deepEqual(verbs.devices(), []);
  fail(ERRNO.EPERM, 0);
  assert.throws(() => verbs.devices(), { code: 'EPERM' });
  assert.throws(() => verbs.open('fake1'), { code: 'ENODEV' });
  onDevice(platform, (context) => {
    assert.deepEqual([context.name, context.vectors], ['fake0', 4]);
    const attributes = verbs.queryDevice(context);
    assert.deepEqual(
      { ...attributes, pageSizes: [attributes.pageSizes[0], attributes.pageSizes.length] },
      {
        ...attributes,
        firmware: '1.2.3',
        nodeGuid: '5054:00ff:fe12:3456',
        systemGuid: '0000:0000:0000:0000',
        vendorId: 0x15b3,
        ports: 2,
        maxMrLength: 2 ** 64,
        pageSizes: [4096, 41],
        maxQps: 10,
        maxMrs: 11,
        maxSges: 12,
        maxResponderDepth: 13,
        maxInitiatorDepth: 14,
        atomics: 'device',
        odp: { general: 1, rc: 4, uc: 0, ud: 0 },
      },
    );
    // An older kernel has only the short form.
    fail(ERRNO.ENOTSUP, 0);
    assert.deepEqual(verbs.queryDevice(context), { ...attributes, odp: { general: 0, rc: 0, uc: 0, ud: 0 } });
    said();
    assert.deepEqual(verbs.queryPort(context, 2), {
      state: 'active',
      linkLayer: 'infiniband',
      maxMtu: 4096,
      activeMtu: 2048,
      maxMessage: 2 ** 30,
      gids: 3,
      pkeys: 7,
      lid: 5,
      smLid: 6,
      capabilities: 0,
      grhRequired: true,
    });
    assert.deepEqual(said(), ['port 2 0']);
    const gid = 'fe80:0000:0000:0000:0000:0000:0000:001f';
    assert.deepEqual(verbs.gids(context), [{ port: 2, index: 1, gid, type: 'roce-v2', interfaceIndex: 3 }]);
    assert.equal(said().pop(), 'gids 6');
    for (const port of [256, -1, 1.5, NaN]) assert.throws(() => verbs.queryPort(context, port), { code: 'EINVAL' });
  });
  assert.equal(live(), 0);
});

test('a device whose library is older', { skip }, () => {
  const { platform, said, old, live } = given();
  const { verbs } = platform;
  old(1);
  onDevice(platform, (context, own) => {
    old(0);
    assert.equal(verbs.queryDevice(context).maxQps, 10);
    verbs.queryPort(context, 1);
    assert.deepEqual(said(), ['query', 'old port 1 0']);
    const pd = own(verbs.allocatePd(context), verbs.deallocatePd);
    assert.throws(() => verbs.allocateMw(pd, 1), { code: 'ENOTSUP', operation: 'ibv_alloc_mw' });
    const mr = own(verbs.registerMemory(pd, { va: 4096 as Va, length: 1, access: 0 }), verbs.deregisterMemory);
    assert.throws(() => verbs.adviseMemory(mr, 0, 1, 0, true), { code: 'ENOTSUP', operation: 'ibv_advise_mr' });
  });
  assert.equal(live(), 0);
});

test('every way to say no becomes a DmaError of that code', { skip }, () => {
  const { platform, fail, live } = given();
  const { verbs } = platform;
  onDevice(platform, (context, own) => {
    const { pd, qp } = queuePair(platform, own, context);
    for (const style of [0, 1, 2]) {
      fail(ERRNO.EBUSY, style);
      assert.throws(() => verbs.modifyQp(qp, { state: IBV_QPS_INIT }), { code: 'EBUSY', operation: 'ibv_modify_qp' });
    }
    fail(ERRNO.ENOTSUP, 0);
    assert.throws(
      () => verbs.registerMemory(pd, { va: 4096 as Va, length: 1, access: 0 }),
      (error) => isDmaError(error, 'ENOTSUP') && !error.reason.includes('socket'),
    );
    fail(ERRNO.EIO, 1);
    assert.throws(() => verbs.pollCq(qp.sendCq, new Completions(platform.memory, 1)), { code: 'EIO' });
    fail(ERRNO.EBUSY, 0);
    assert.throws(() => verbs.deallocatePd(pd), { code: 'EBUSY' });
    assert.notEqual(pd.address, 0);
    assert.throws(() => verbs.close(context), { code: 'EBUSY', reason: '3 objects created on fake0 are open' });
    const mr = own(verbs.registerMemory(pd, { va: 4096 as Va, length: 1, access: 0 }), verbs.deregisterMemory);
    fail(ERRNO.EINVAL, 0);
    assert.throws(() => verbs.deregisterMemory(mr), { code: 'EINVAL' });
    own(verbs.allocateMw(pd, 1), verbs.deallocateMw);
    fail(ERRNO.EINVAL, 0);
    assert.throws(() => verbs.deregisterMemory(mr), { code: 'EBUSY' });
  });
  assert.equal(live(), 0);
});

test("what was given back, and what is another port's, is refused", { skip }, () => {
  const { platform } = given();
  const { verbs } = platform;
  const context = verbs.open('fake0');
  const pd = verbs.allocatePd(context);
  verbs.deallocatePd(pd);
  assert.equal(pd.address, 0);
  for (const attempt of [
    () => verbs.deallocatePd(pd),
    () => verbs.registerMemory(pd, { va: 4096 as Va, length: 1, access: 0 }),
    () => verbs.registerMemory({ address: 1, context }, { va: 4096 as Va, length: 1, access: 0 }),
  ])
    assert.throws(attempt, { code: 'EINVAL' });
  const other = verbs.open('fake0');
  const channel = verbs.createChannel(other);
  assert.throws(() => verbs.createCq(context, 4, channel), { code: 'EINVAL', operation: 'ibv_create_cq' });
  verbs.destroyChannel(channel);
  verbs.close(other);
  assert.throws(() => verbs.queryDevice(other), { code: 'EINVAL' });
  verbs.close(context);
});

test('registration', { skip }, () => {
  const { platform, said } = given();
  const { verbs } = platform;
  onDevice(platform, (context, own) => {
    const pd = own(verbs.allocatePd(context), verbs.deallocatePd);
    const register = (options: Parameters<typeof verbs.registerMemory>[1]) =>
      own(verbs.registerMemory(pd, options), verbs.deregisterMemory);
    const mr = register({ va: 0x7f0012345000 as Va, length: 2 ** 40, access: 0xf });
    assert.deepEqual([mr.lkey, mr.rkey, mr.pd], [0xfffffff0, 0x80000001, pd]);
    register({ va: 4096 as Va, length: 5, access: 2 ** 31, iova: 2 ** 52 });
    register({ va: 0 as Va, length: Infinity, access: 0x40 });
    own(
      verbs.registerDmabuf(pd, { fd: 9, offset: 4096, length: 8192, iova: 2 ** 40, access: 1 }),
      verbs.deregisterMemory,
    );
    assert.deepEqual(said(), [
      'reg 7f0012345000 10000000000 7f0012345000 f',
      'reg 1000 5 10000000000000 80000000',
      'reg 0 ffffffffffffffff 0 40',
      'dmabuf 1000 2000 10000000000 9 1',
    ]);
    const va = 4096 as Va;
    for (const wrong of [
      { va, length: Infinity, access: 0 },
      { va, length: 0, access: 0 },
      { va, length: 1.5, access: 0 },
      { va: -1 as Va, length: 1, access: 0 },
      { va, length: 1, access: -1 },
      { va, length: 1, access: 0, iova: 2 ** 53 },
    ])
      assert.throws(() => verbs.registerMemory(pd, wrong), { code: 'EINVAL', operation: 'ibv_reg_mr' });
    verbs.adviseMemory(mr, 0x1000, 2 ** 31 + 5, IBV_ADVISE_MR_ADVICE_PREFETCH, true);
    const lkey = 'fffffff0';
    assert.deepEqual(said(), [`advise 0 1 [1000 2147483648 ${lkey}] [80001000 5 ${lkey}]`]);
  });
});

test('queue pairs are set up with what is given, and no more', { skip }, () => {
  const { platform, said } = given();
  const { verbs } = platform;
  onDevice(platform, (context, own) => {
    const { qp } = queuePair(platform, own, context);
    assert.deepEqual([qp.number, qp.sends, qp.receives, qp.sendSges, qp.type], [17, 5, 0, 2, 'rc']);
    assert.equal(qp.sendCq.entries, 9);
    verbs.resizeCq(qp.sendCq, 30);
    assert.equal(qp.sendCq.entries, 32);
    said();
    verbs.modifyQp(qp, { state: IBV_QPS_INIT, access: 7, pkeyIndex: 2, port: 1 });
    verbs.modifyQp(qp, {
      state: IBV_QPS_RTR,
      mtu: 1024,
      peer: 0xabcdef,
      receivePsn: 1,
      sendPsn: 2,
      timeout: 14,
      retries: 6,
      rnrRetries: 7,
      minRnrTimer: 12,
      initiatorDepth: 3,
      responderDepth: 4,
      qkey: 0xffffffff,
      path: {
        port: 1,
        lid: 9,
        route: { gid: 'fe80:0:0:0:0:0:0:00AB', localIndex: 3, trafficClass: 5, flowLabel: 0xfffff },
      },
    });
    assert.deepEqual(said(), [
      'modify 39 s1 a7 pk2 p1 q0 m0 peer0 rp0 sp0 t0 r0 rnr0 min0 i0 o0 g0 00..00 0 0 0 0 0 0',
      'modify 13bfc1 s2 a0 pk0 p0 qffffffff m3 peer11259375 rp1 sp2 t14 r6 rnr7 min12 i3 o4 g1 fe..ab 3 64 5 fffff 9 1',
    ]);
    const { state, mtu, sendPsn, timeout, peer } = verbs.queryQp(qp);
    assert.deepEqual({ state, mtu, sendPsn, timeout, peer }, { state: 3, mtu: 512, sendPsn: 9, timeout: 14, peer: 0 });
    for (const wrong of [
      { mtu: 1500 },
      { timeout: 32 },
      { retries: 8 },
      { peer: 2 ** 24 },
      { port: 256 },
      { path: { port: 1, route: { gid: 'fe80::1', localIndex: 0 } } },
      { path: { port: 1, route: { gid: '0:0:0:0:0:0:0:g', localIndex: 0 } } },
    ])
      assert.throws(() => verbs.modifyQp(qp, wrong), { code: 'EINVAL', operation: 'ibv_modify_qp' });
    assert.deepEqual(said(), []);
  });
});

test('queue pairs are set up, and ways made, on other threads', { skip }, async () => {
  const { platform, said, fail, live } = given();
  const { verbs } = platform;
  const context = verbs.open('fake0');
  const undo: (() => void)[] = [];
  const { pd, qp } = queuePair(
    platform,
    (made, giveBack) => {
      undo.unshift(() => giveBack(made));
      return made;
    },
    context,
  );
  said();
  await verbs.modifyQpAsync(qp, { state: IBV_QPS_INIT, access: 7, pkeyIndex: 2, port: 1 });
  assert.deepEqual(said(), ['modify 39 s1 a7 pk2 p1 q0 m0 peer0 rp0 sp0 t0 r0 rnr0 min0 i0 o0 g0 00..00 0 0 0 0 0 0']);
  await assert.rejects(verbs.modifyQpAsync(qp, { mtu: 1500 }), { code: 'EINVAL', operation: 'ibv_modify_qp' });
  for (const style of [0, 1, 2]) {
    fail(ERRNO.ETIMEDOUT, style);
    await assert.rejects(verbs.modifyQpAsync(qp, { state: IBV_QPS_INIT }), {
      code: 'ETIMEDOUT',
      operation: 'ibv_modify_qp',
    });
  }
  fail(ERRNO.ENETUNREACH, 0);
  await assert.rejects(verbs.createAhAsync(pd, { port: 1, lid: 7 }), {
    code: 'ENETUNREACH',
    operation: 'ibv_create_ah',
  });
  verbs.destroyAh(await verbs.createAhAsync(pd, { port: 1, lid: 7 }));
  for (const step of undo) step();
  verbs.close(context);
  assert.equal(live(), 0);
});

test('every send request as the C struct has it, around the end of the slots', { skip }, () => {
  const { platform, said, libc } = given();
  const { verbs, memory } = platform;
  onDevice(platform, (context, own) => {
    const { pd, qp } = queuePair(platform, own, context);
    const mr = own(
      verbs.registerMemory(pd, { va: 4096 as Va, length: 1, access: IBV_ACCESS_LOCAL_WRITE }),
      verbs.deregisterMemory,
    );
    const mw = own(verbs.allocateMw(pd, 2), verbs.deallocateMw);
    said();
    const r = new SendRequests(memory, 12, 3);
    const remote = 0x1fedcba9876543;
    const rkey = 0xdeadbeef;
    const verbsOf: ((slot: number) => void)[] = [
      (slot) => r.write(slot, remote, rkey, 2),
      (slot) => r.writeWithImmediate(slot, remote, rkey, 0x81020304, 0),
      (slot) => r.read(slot, remote, rkey, 2),
      (slot) => r.send(slot, 4),
      (slot) => r.sendWithImmediate(slot, 1, 0),
      (slot) => r.sendWithInvalidate(slot, rkey, 0),
      (slot) => r.invalidate(slot, rkey, 0),
      (slot) => r.compareAndSwap(slot, remote, rkey, -1, 2 ** 53 - 1, 0),
      (slot) => r.compareAndSwap(slot, remote, rkey, 0xfedcba9876543210n, -(2 ** 40) - 5, 0),
      (slot) => r.fetchAndAdd(slot, remote, rkey, -1n, 0),
      (slot) => r.bindWindow(slot, mw, rkey, mr, 2 ** 40, 2 ** 33, 2, 1),
    ];
    for (const [i, set] of verbsOf.entries()) {
      const slot = (7 + i) % 12;
      r.setId(slot, 2 ** 40 + i);
      r.setLocal(slot, 0x7f0000001000 + i, 0xffffffff, 0x80000000);
      if (i % 3 === 1) r.addLocal(slot, 16, 17, 18);
      if (i % 3 === 2) r.clearLocal(slot);
      set(slot);
    }
    assert.equal(verbs.postSend(qp, r, 7, 11), 11);
    const id = (i: number): string => String(2 ** 40 + i);
    const one = (i: number): string => `[${(0x7f0000001000 + i).toString(16)} 4294967295 80000000]`;
    const to = '1fedcba9876543 deadbeef';
    assert.deepEqual(said(), [
      `${id(0)} op0 f2 ${to} ${one(0)}`,
      `${id(1)} op1 f0 i81020304 ${to} ${one(1)} [10 17 12]`,
      `${id(2)} op4 f2 ${to}`,
      `${id(3)} op2 f4 ${one(3)}`,
      `${id(4)} op3 f0 i1 ${one(4)} [10 17 12]`,
      `${id(5)} op9 f0 deadbeef`,
      `${id(6)} op7 f0 deadbeef ${one(6)}`,
      `${id(7)} op5 f0 ${to} ffffffffffffffff 1fffffffffffff ${one(7)} [10 17 12]`,
      `${id(8)} op5 f0 ${to} fedcba9876543210 fffffefffffffffb`,
      `${id(9)} op6 f0 ${to} ffffffffffffffff 0 ${one(9)}`,
      `${id(10)} op8 f1 deadbeef 10000000000 8589934592 2 ${one(10)} [10 17 12]`,
    ]);
    // Posted again, one and then all of the ring: the chain was put together again.
    assert.equal(verbs.postSend(qp, r, 9, 1), 1);
    assert.equal(said().length, 1);
    r.send(6, 0);
    assert.equal(verbs.postSend(qp, r, 6, 12), 12);
    assert.equal(said().length, 12);

    r.setId(0, 999);
    assert.equal(verbs.postSend(qp, r, 10, 5), 2);
    assert.equal(said().length, 2);
    assert.throws(() => verbs.postSend(qp, r, 0, 1), { code: 'ENOMEM', operation: 'ibv_post_send' });

    const receives = new ReceiveRequests(memory, 2, 2);
    receives.setId(0, 5);
    receives.setLocal(0, 1, 2, 3);
    receives.addLocal(0, 4, 5, 6);
    assert.equal(verbs.postReceive(qp, receives, 1, 2), 2);
    assert.deepEqual(said(), ['0', '5 [1 2 3] [4 5 6]']);
    assert.equal(libc.peek(receives.addressOf(0)), 5);
  });
});

test('a request whose pointers lead nowhere is not posted', { skip }, () => {
  const { platform, said } = given();
  const { verbs, memory } = platform;
  onDevice(platform, (context, own) => {
    const { pd, qp } = queuePair(platform, own, context, 'ud');
    const foreign = own(verbs.allocatePd(context), verbs.deallocatePd);
    const r = new SendRequests(memory, 2);
    const refused = (): void => {
      r.setId(0, 1);
      assert.throws(() => verbs.postSend(qp, r, 0, 2), { code: 'EINVAL', operation: 'ibv_post_send' });
    };
    said();
    const ah = own(verbs.createAh(pd, { port: 1, lid: 77 }), verbs.destroyAh);
    const other = own(verbs.createAh(foreign, { port: 1, lid: 78 }), verbs.destroyAh);
    const gone = verbs.createAh(pd, { port: 1 });
    for (const slot of [0, 1]) {
      r.send(slot, 0);
      r.setDestination(slot, ah, 5, 0x80010000);
    }
    assert.equal(verbs.postSend(qp, r, 0, 2), 2);
    assert.deepEqual(said(), ['0 op2 f0 to 5 80010000 77', '0 op2 f0 to 5 80010000 77']);
    r.send(1, 0);
    refused();
    r.setDestination(1, other, 5, 0);
    refused();
    r.setDestination(1, gone, 5, 0);
    verbs.destroyAh(gone);
    refused();
    assert.deepEqual(said(), []);
  });
});

test('a queue pair that is lent to another port is called there, and stays where it was made', { skip }, () => {
  const { libc, platform, live, said } = given();
  // As another thread has it: it has not loaded the library.
  const other = linuxVerbs(libc, () => 'not loaded');
  onDevice(platform, (context, own) => {
    const { pd, qp } = queuePair(platform, own, context);
    const before = live();
    const loan = JSON.parse(JSON.stringify(platform.verbs.lend(qp))) as ReturnType<typeof platform.verbs.lend>;
    const borrowed = other.borrow(loan);
    assert.equal(borrowed.sendCq, borrowed.receiveCq);
    const shapeOf = ({ number, type, sends, receives, sendSges, receiveSges, inline }: VerbsQp): unknown[] => [
      ...[number, type, sends, receives, sendSges, receiveSges, inline],
    ];
    assert.deepEqual(shapeOf(borrowed), shapeOf(qp));
    said();
    const requests = new SendRequests(platform.memory, 1);
    requests.setId(0, 5);
    requests.setLocal(0, 4096, 8, 6);
    requests.send(0, work.IBV_SEND_SIGNALED);
    assert.equal(other.postSend(borrowed, requests, 0, 1), 1);
    const receives = new ReceiveRequests(platform.memory, 1);
    receives.setId(0, 7);
    assert.equal(other.postReceive(borrowed, receives, 0, 1), 1);
    assert.deepEqual(said(), ['5 op2 f2 [1000 8 6]', '7']);
    const completions = new Completions(platform.memory, 2);
    assert.equal(other.pollCq(borrowed.sendCq, completions), 2);
    other.giveBack(borrowed);
    for (const call of [
      () => other.postSend(borrowed, requests, 0, 1),
      () => other.postReceive(borrowed, receives, 0, 1),
      () => other.pollCq(borrowed.sendCq, completions),
      () => other.giveBack(borrowed),
    ])
      assert.throws(call, { code: 'EINVAL' });
    assert.equal(live(), before);
    assert.equal(platform.verbs.postSend(qp, requests, 0, 1), 1);
    assert.ok(pd.address !== 0);
  });
});

test('completions are read as the C struct has them', { skip }, () => {
  const { platform } = given();
  const { verbs, memory } = platform;
  onDevice(platform, (context, own) => {
    const cq = own(verbs.createCq(context, 8), verbs.destroyCq);
    assert.equal(verbs.pollCq(cq, new Completions(memory, 2)), 2);
    const c = new Completions(memory, 4);
    assert.equal(verbs.pollCq(cq, c), 3);
    assert.deepEqual(
      [
        c.id(2),
        c.status(2),
        c.opcode(2),
        c.vendorError(2),
        c.byteLength(2),
        c.immediate(2),
        c.qpNumber(2),
        c.sourceQp(2),
        c.flags(2),
      ],
      [0x12345678b, work.IBV_WC_REM_ACCESS_ERR, work.IBV_WC_RECV, 77, 4098, 0x80000001, 17, 18, work.IBV_WC_WITH_IMM],
    );
    assert.equal(completionStatusName(c.status(2)), 'REM_ACCESS_ERR');
    assert.equal(completionStatusName(99), 'status 99');
    assert.deepEqual([c.id(3), c.status(3)], [0, 0]);
  });
  for (const slots of [0, -1, 1.5, NaN, 1e9]) {
    assert.throws(() => new Completions(memory, slots), { code: 'EINVAL' });
    assert.throws(() => new SendRequests(memory, slots), { code: 'EINVAL' });
  }
});

test('events come without blocking, acknowledged, and with what they are about', { skip }, () => {
  const { platform, said, signal } = given();
  const { verbs } = platform;
  onDevice(platform, (context, own) => {
    const { qp } = queuePair(platform, own, context);
    const channel = own(verbs.createChannel(context), verbs.destroyChannel);
    const cq = own(verbs.createCq(context, 8, channel, 3), verbs.destroyCq);
    assert.equal(said().pop(), 'cq 8 1 3');
    assert.equal(verbs.nextAsyncEvent(context), undefined);
    assert.equal(verbs.nextCqEvent(channel), undefined);
    signal(2, 10);
    signal(qp.address, 3);
    signal(cq.address, 0);
    signal(0, 8);
    const came = [1, 2, 3, 4].map(() => verbs.nextAsyncEvent(context));
    assert.deepEqual(
      came.map((event) => [event?.name, event?.port, event?.qp?.number, event?.cq === cq]),
      [
        ['PORT_ERR', 2, undefined, false],
        ['QP_ACCESS_ERR', undefined, 17, false],
        ['CQ_ERR', undefined, undefined, true],
        ['DEVICE_FATAL', undefined, undefined, false],
      ],
    );
    assert.deepEqual(said(), ['ack 10', 'ack 3', 'ack 0', 'ack 8']);
    signal(cq.address, 0);
    assert.equal(verbs.nextCqEvent(channel), cq);
    assert.equal(verbs.nextCqEvent(channel), undefined);
    verbs.requestNotify(cq, true);
    assert.deepEqual(said(), ['acks 1', 'notify 1']);
  });
});

test('with its 1st, 2nd, ... call failing, a scenario leaves nothing', { skip }, () => {
  const { platform: tracked, live } = given();
  for (let n = 1; ; n++) {
    const failing = failingPlatform(tracked);
    failing.failCall(n, 'EIO');
    let error: unknown;
    try {
      const { verbs } = failing;
      onDevice(failing, (context, own) => {
        const { pd, qp } = queuePair(failing, own, context);
        own(verbs.createChannel(context), verbs.destroyChannel);
        const mr = own(verbs.registerMemory(pd, { va: 4096 as Va, length: 1, access: 0 }), verbs.deregisterMemory);
        own(verbs.registerDmabuf(pd, { fd: 1, offset: 0, length: 1, iova: 0, access: 0 }), verbs.deregisterMemory);
        const mw = own(verbs.allocateMw(pd, 1), verbs.deallocateMw);
        assert.equal(verbs.bindMw(qp, mw, { mr, va: 4096, length: 1, access: 2, id: 3, flags: 0 }), 0x701);
        own(verbs.createAh(pd, { port: 1 }), verbs.destroyAh);
        if (n > 20) assert.equal(tracked.leaks().length, 9);
      });
    } catch (caught) {
      error = caught;
    }
    assert.deepEqual(tracked.leaks(), []);
    assert.equal(live(), 0);
    if (failing.failed() === undefined) {
      assert.equal(error, undefined);
      assert.equal(n, 11);
      break;
    }
    assert.ok(isDmaError(error, 'EIO'));
  }
});
