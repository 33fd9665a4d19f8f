/*
 * A libibverbs without a device: what the calls of the library cost by themselves. A request that is posted is done, and its
 * completion waits to be polled. Only what the benchmark needs is there.
 *
 *   cc -shared -fPIC -O2 -o fake-verbs fake-verbs.c
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <infiniband/verbs.h>
#undef ibv_query_port
#undef ibv_reg_mr
#undef ibv_reg_mr_iova

#define DONE 4096

static struct ibv_device device = { .node_type = IBV_NODE_CA, .transport_type = IBV_TRANSPORT_IB, .name = "fake0",
  .dev_name = "uverbs0", .dev_path = "/nowhere/u", .ibdev_path = "/nowhere" };
static struct ibv_device *list[] = { &device, NULL };
static struct { struct ibv_cq cq; unsigned head, tail; uint64_t done[DONE]; } queues[4];
static int made, pipes[2];

struct ibv_device **ibv_get_device_list(int *count) { if (count) *count = 1; return list; }
void ibv_free_device_list(struct ibv_device **all) { (void)all; }

static int complete(struct ibv_cq *cq, uint64_t id) {
  unsigned n = (unsigned)(uintptr_t)cq->cq_context;
  if (queues[n].head - queues[n].tail == DONE) return ENOMEM;
  queues[n].done[queues[n].head++ % DONE] = id;
  return 0;
}
static int post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad) {
  for (; wr; wr = wr->next)
    if ((wr->send_flags & IBV_SEND_SIGNALED) && complete(qp->send_cq, wr->wr_id)) { *bad = wr; return ENOMEM; }
  return 0;
}
static int post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad) {
  for (; wr; wr = wr->next) if (complete(qp->recv_cq, wr->wr_id)) { *bad = wr; return ENOMEM; }
  return 0;
}
static int poll_cq(struct ibv_cq *cq, int count, struct ibv_wc *wc) {
  unsigned n = (unsigned)(uintptr_t)cq->cq_context;
  int i = 0;
  for (; i < count && queues[n].tail != queues[n].head; i++) {
    memset(&wc[i], 0, sizeof wc[i]);
    wc[i].wr_id = queues[n].done[queues[n].tail++ % DONE];
  }
  return i;
}
static int req_notify_cq(struct ibv_cq *cq, int solicited) { (void)cq; (void)solicited; return 0; }
int ibv_query_device(struct ibv_context *c, struct ibv_device_attr *a) {
  (void)c;
  *a = (struct ibv_device_attr){ .max_mr_size = ~0ULL, .page_size_cap = ~0xfffULL, .max_qp = 4, .max_qp_wr = DONE, .max_mr = 64, .max_sge = 4,
    .max_cq = 4, .max_cqe = DONE, .phys_port_cnt = 1 };
  return 0;
}
struct ibv_context *ibv_open_device(struct ibv_device *d) {
  if (pipe(pipes)) return NULL;
  struct ibv_context *c = calloc(1, sizeof *c);
  c->device = d; c->async_fd = pipes[0]; c->num_comp_vectors = 1;
  c->ops.poll_cq = poll_cq; c->ops.req_notify_cq = req_notify_cq; c->ops.post_send = post_send; c->ops.post_recv = post_recv;
  return c;
}
int ibv_close_device(struct ibv_context *c) { close(pipes[0]); close(pipes[1]); free(c); return 0; }
int ibv_query_port(struct ibv_context *c, uint8_t port, struct _compat_ibv_port_attr *attr) {
  (void)c; (void)port;
  *(struct ibv_port_attr *)attr = (struct ibv_port_attr){ .state = IBV_PORT_ACTIVE, .max_mtu = IBV_MTU_4096, .active_mtu = IBV_MTU_4096,
    .gid_tbl_len = 1, .lid = 1, .link_layer = IBV_LINK_LAYER_INFINIBAND };
  return 0;
}
ssize_t _ibv_query_gid_table(struct ibv_context *c, struct ibv_gid_entry *e, size_t max, uint32_t flags, size_t size) {
  (void)c; (void)max; (void)flags; (void)size;
  e[0] = (struct ibv_gid_entry){ .port_num = 1, .gid_type = IBV_GID_TYPE_IB, .gid.raw = { 0xfe, 0x80, [15] = 1 } };
  return 1;
}
int ibv_get_async_event(struct ibv_context *c, struct ibv_async_event *e) { (void)c; (void)e; errno = EAGAIN; return -1; }
void ibv_ack_async_event(struct ibv_async_event *e) { (void)e; }
struct ibv_pd *ibv_alloc_pd(struct ibv_context *c) { struct ibv_pd *pd = calloc(1, sizeof *pd); pd->context = c; return pd; }
int ibv_dealloc_pd(struct ibv_pd *pd) { free(pd); return 0; }
struct ibv_mr *ibv_reg_mr_iova2(struct ibv_pd *pd, void *a, size_t l, uint64_t i, unsigned int access) {
  (void)a; (void)l; (void)i; (void)access;
  struct ibv_mr *mr = calloc(1, sizeof *mr); mr->context = pd->context; mr->lkey = 7; mr->rkey = 8; return mr;
}
int ibv_dereg_mr(struct ibv_mr *mr) { free(mr); return 0; }
struct ibv_comp_channel *ibv_create_comp_channel(struct ibv_context *c) { (void)c; errno = ENOSYS; return NULL; }
int ibv_destroy_comp_channel(struct ibv_comp_channel *c) { (void)c; return 0; }
int ibv_get_cq_event(struct ibv_comp_channel *c, struct ibv_cq **q, void **x) { (void)c; (void)q; (void)x; errno = EAGAIN; return -1; }
void ibv_ack_cq_events(struct ibv_cq *cq, unsigned int n) { (void)cq; (void)n; }
struct ibv_cq *ibv_create_cq(struct ibv_context *c, int cqe, void *x, struct ibv_comp_channel *ch, int v) {
  (void)x; (void)ch; (void)v;
  struct ibv_cq *cq = &queues[made % 4].cq;
  cq->context = c; cq->cqe = cqe; cq->cq_context = (void *)(uintptr_t)(made++ % 4);
  return cq;
}
int ibv_resize_cq(struct ibv_cq *cq, int cqe) { (void)cq; (void)cqe; return ENOSYS; }
int ibv_destroy_cq(struct ibv_cq *cq) { (void)cq; return 0; }
struct ibv_qp *ibv_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *a) {
  struct ibv_qp *qp = calloc(1, sizeof *qp);
  qp->context = pd->context; qp->send_cq = a->send_cq; qp->recv_cq = a->recv_cq; qp->qp_type = a->qp_type; qp->qp_num = 1;
  return qp;
}
int ibv_modify_qp(struct ibv_qp *qp, struct ibv_qp_attr *a, int mask) { (void)qp; (void)a; (void)mask; return 0; }
int ibv_query_qp(struct ibv_qp *q, struct ibv_qp_attr *a, int m, struct ibv_qp_init_attr *i) { (void)q; (void)a; (void)m; (void)i; return 0; }
int ibv_destroy_qp(struct ibv_qp *qp) { free(qp); return 0; }
struct ibv_ah *ibv_create_ah(struct ibv_pd *pd, struct ibv_ah_attr *a) { (void)a; struct ibv_ah *ah = calloc(1, sizeof *ah); ah->context = pd->context; return ah; }
int ibv_destroy_ah(struct ibv_ah *ah) { free(ah); return 0; }
