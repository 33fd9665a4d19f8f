/** For tests of memory: a machine with simulated hugepages and NUMA nodes. */
import { DmaError } from '../../../src/errors.js';
import type { CommitOptions, MemfdOptions, Platform } from '../../../src/platform/ports.js';
import { KiB, MiB, type Va } from '../../../src/units.js';

/** The number of hugepages: `pages[node]` of `pageSize` bytes. */
export interface FakePages {
  readonly pageSize: number;
  readonly pages: number[];
}

/** A platform whose hugepages are made of ordinary memory. */
export interface FakePagesPlatform extends Platform {
  /** Free pages of a size on a node, now; a test may change them. */
  readonly free: Map<string, number>;
}

/** The key of {@link FakePagesPlatform.free}. */
export function poolOf(pageSize: number, node = 0): string {
  return `${pageSize / MiB}M@${node}`;
}

/**
 * Wraps a platform that makes system calls so that it seems to have these hugepages, and no others. They are counted, run
 * out, and come from the node that the memory was bound to, as real ones.
 */
export function fakeHugePages(platform: Platform, pools: readonly FakePages[]): FakePagesPlatform {
  const nodes = Math.max(1, ...pools.map(({ pages }) => pages.length));
  const free = new Map<string, number>();
  for (const { pageSize, pages } of pools) pages.forEach((count, node) => free.set(poolOf(pageSize, node), count));
  const sizeOfFd = new Map<number, number>();
  /** Committed stretches, by page. */
  const pageAt = new Map<number, { pageSize: number; node: number; present: boolean }>();
  const { memory, limits, kernel, files } = platform;

  const drop = (va: number, length: number): void => {
    for (const [at, page] of pageAt) {
      if (at < va || at >= va + length) continue;
      if (page.present) add(page.pageSize, page.node, 1);
      pageAt.delete(at);
    }
  };
  const add = (pageSize: number, node: number, count: number): void => {
    free.set(poolOf(pageSize, node), (free.get(poolOf(pageSize, node)) ?? 0) + count);
  };
  const pagesIn = (va: number, length: number): { pageSize: number; node: number; present: boolean }[] =>
    [...pageAt].filter(([at]) => at >= va && at < va + length).map(([, page]) => page);
  const total = (pageSize: number): number =>
    Array.from({ length: nodes }, (_, node) => free.get(poolOf(pageSize, node)) ?? 0).reduce((a, b) => a + b, 0);

  return {
    ...platform,
    free,
    limits: { ...limits, freeHugePages: (pageSize) => total(pageSize) },
    memory: {
      ...memory,
      memfd(options: MemfdOptions) {
        const { hugePageSize, ...rest } = options;
        const fd = memory.memfd(rest);
        if (hugePageSize !== undefined) sizeOfFd.set(fd, hugePageSize);
        return fd;
      },
      commit(va: Va, options: CommitOptions) {
        memory.commit(va, options);
        const pageSize = options.fd === undefined ? undefined : sizeOfFd.get(options.fd);
        if (pageSize === undefined) return;
        for (let at: number = va; at < va + options.length; at += pageSize)
          pageAt.set(at, { pageSize, node: 0, present: false });
      },
      bind(va: Va, length: number, node: number) {
        for (const page of pagesIn(va, length)) page.node = node;
      },
      nodesOf(va: Va, pageSize: number, count: number) {
        const [page] = pagesIn(va, pageSize * count);
        return new Int32Array(count).fill(page?.node ?? -1);
      },
      populate(va: Va, length: number, access?: 'read' | 'write') {
        memory.populate(va, length, access);
        for (const page of pagesIn(va, length)) {
          const left = free.get(poolOf(page.pageSize, page.node)) ?? 0;
          if (left === 0) throw new DmaError({ code: 'ENOMEM', operation: 'madvise', reason: 'no hugepage is free' });
          page.present = true;
          add(page.pageSize, page.node, -1);
        }
      },
      async populateAsync(va: Va, length: number, access?: 'read' | 'write') {
        await new Promise((resolve) => setImmediate(resolve));
        this.populate(va, length, access);
      },
      decommit(va: Va, length: number) {
        memory.decommit(va, length);
        drop(va, length);
      },
      retire(va: Va, length: number) {
        memory.retire(va, length);
        drop(va, length);
      },
      unmap(va: Va, length: number) {
        memory.unmap(va, length);
        drop(va, length);
      },
    },
    files: {
      ...files,
      close(fd: number) {
        files.close(fd);
        sizeOfFd.delete(fd);
      },
    },
    kernel: {
      ...kernel,
      list(directory: string) {
        const names = pools.map(({ pageSize }) => `hugepages-${pageSize / KiB}kB`);
        if (directory === '/sys/kernel/mm/hugepages') return names;
        if (directory === '/sys/devices/system/node') return Array.from({ length: nodes }, (_, node) => `node${node}`);
        if (/^\/sys\/devices\/system\/node\/node\d+\/hugepages$/.test(directory)) return names;
        return kernel.list(directory);
      },
      readText(path: string) {
        const match =
          /^\/sys\/(?:kernel\/mm|devices\/system\/node\/node(\d+))\/hugepages\/hugepages-(\d+)kB\/(\w+)$/.exec(path);
        if (match === null) return kernel.readText(path);
        const [, node, kB, file] = match;
        if (file !== 'free_hugepages' && file !== 'nr_hugepages') return '0';
        const pageSize = Number(kB) * KiB;
        return String(node === undefined ? total(pageSize) : (free.get(poolOf(pageSize, Number(node))) ?? 0));
      },
    },
  };
}
