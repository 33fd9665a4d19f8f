/** What the compiler has to be told about peers that use libraries. */
import { spawnSync } from 'node:child_process';

/**
 * What each peer needs of DPDK, linked into it: with shared libraries it would load every driver there is when it starts.
 * First what registers itself, which the linker would leave out.
 */
const DPDK: Readonly<Record<string, { readonly whole: readonly string[]; readonly others: readonly string[] }>> = {
  'dpdk-memory': { whole: ['mempool_ring'], others: ['mempool', 'ring', 'eal', 'telemetry', 'kvargs'] },
  'dpdk-rings': { whole: ['mempool_ring'], others: ['mempool', 'ring', 'eal', 'telemetry', 'kvargs'] },
  'dpdk-net': {
    whole: ['bus_vdev', 'mempool_ring', 'net_null'],
    others: ['ethdev', 'mbuf', 'mempool', 'ring', 'net', 'meter', 'eal', 'telemetry', 'kvargs'],
  },
  'dpdk-extmem': {
    whole: ['bus_pci', 'mempool_ring', 'net_e1000'],
    others: ['ethdev', 'mbuf', 'mempool', 'ring', 'net', 'meter', 'pci', 'eal', 'telemetry', 'kvargs'],
  },
};

/** Flags for `peers/NAME.c`, or the reason why it can not be compiled here. */
export function flagsOf(name: string): readonly string[] | string {
  if (name === 'rdma-reg') return ['-libverbs'];
  // A library itself.
  if (name === 'fake-verbs') return ['-shared', '-fPIC'];
  if (!(name in DPDK)) return [];
  const { status, stdout } = spawnSync('pkg-config', ['--cflags', 'libdpdk'], { encoding: 'utf8' });
  if (status !== 0) return 'no DPDK (Debian: dpdk-dev, pkg-config)';
  const { whole, others } = DPDK[name];
  const archives = (names: readonly string[]): string => names.map((each) => `-l:librte_${each}.a`).join(',');
  return [
    ...stdout.trim().split(/\s+/),
    `-Wl,--whole-archive,${archives(whole)},--no-whole-archive`,
    ...others.map((each) => `-l:librte_${each}.a`),
    ...['numa', 'bsd', 'dl', 'm', 'pthread'].map((each) => `-l${each}`),
  ];
}
