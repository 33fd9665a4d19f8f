/**
 * Every number and layout in this folder against the kernel's and the C library's own headers, by a C program. The headers
 * are the system's, or with ANYDMA_UAPI_INCLUDE those of that directory before them: what `make headers_install` of a
 * kernel puts into `include`.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import assert from 'node:assert/strict';
import * as aio from './aio.js';
import * as eventfd from './eventfd.js';
import * as eventpoll from './eventpoll.js';
import * as falloc from './falloc.js';
import * as fcntl from './fcntl.js';
import * as iommufd from './iommufd.js';
import * as memfd from './memfd.js';
import * as mempolicy from './mempolicy.js';
import * as mman from './mman.js';
import * as pciRegs from './pci-regs.js';
import * as poll from './poll.js';
import * as procmap from './procmap.js';
import * as resource from './resource.js';
import * as rtnetlink from './rtnetlink.js';
import * as socket from './socket.js';
import * as stat from './stat.js';
import * as statfs from './statfs.js';
import * as syslog from './syslog.js';
import { syscallNumbers } from './unistd.js';
import * as vfio from './vfio.js';

const C_LIBRARY = `
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <netinet/in.h>
#include <linux/aio_abi.h>
#include <linux/capability.h>
#include <linux/falloc.h>
#include <linux/memfd.h>
#include <linux/mempolicy.h>
#include <linux/netlink.h>
#include <linux/nexthop.h>
#include <linux/rtnetlink.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <linux/magic.h>
`;

/** Not names of the headers but this library's own, and what they must equal there. */
const OWN_NAMES: ReadonlyMap<string, string> = new Map([
  ['MOST_FDS', '253'],
  ['EPOLL_EVENT_ROOM', '16'],
  ['STAT_BLOCK', '512'],
  ['S_PERMISSIONS', '07777'],
  ['SYSLOG_ACTION_READ_ALL', '3'],
  ['SYSLOG_ACTION_SIZE_BUFFER', '10'],
]);

const OWN_STRUCTS: ReadonlyMap<string, string> = new Map([['PROCMAP_QUERY_ARGUMENT', 'struct procmap_query']]);

/** One C program. */
interface Check {
  readonly name: string;
  /** `#include` lines and what must stand before them. */
  readonly headers: string;
  /** Macros without which the headers are older than the numbers here. */
  readonly needs?: string;
  readonly modules: readonly Readonly<Record<string, unknown>>[];
  /** Further C expressions and what they must be. */
  readonly more?: Readonly<Record<string, number>>;
  /** No less than this many numbers are compared. */
  readonly least: number;
}

const CHECKS: readonly Check[] = [
  {
    name: 'the C library',
    headers: C_LIBRARY,
    modules: [
      aio,
      eventfd,
      eventpoll,
      falloc,
      fcntl,
      memfd,
      mempolicy,
      mman,
      poll,
      resource,
      rtnetlink,
      socket,
      stat,
      statfs,
      syslog,
    ],
    more: Object.fromEntries(
      Object.entries(syscallNumbers(process.arch)).map(([name, number]) => [`__NR_${name}`, number]),
    ),
    least: 85,
  },
  {
    name: 'linux/vfio.h',
    headers: '#include <linux/vfio.h>',
    needs: 'VFIO_DEVICE_FEATURE_DMA_BUF',
    modules: [vfio],
    least: 230,
  },
  {
    name: 'linux/iommufd.h',
    headers: '#include <linux/iommufd.h>',
    needs: 'IOMMU_IOAS_CHANGE_PROCESS',
    modules: [iommufd],
    least: 150,
  },
  {
    name: 'linux/fs.h',
    headers: '#include <sys/ioctl.h>\n#include <linux/fs.h>',
    needs: 'PROCMAP_QUERY',
    modules: [procmap],
    least: 10,
  },
  { name: 'linux/pci_regs.h', headers: '#include <linux/pci_regs.h>', modules: [pciRegs], least: 70 },
];

/** What a C program must print, by C expression. Records with a `sizeof` are layouts, others are constants grouped. */
function expectations(modules: Check['modules']): Map<string, number> {
  const expected = new Map<string, number>();
  for (const module of modules) {
    for (const [name, value] of Object.entries(module) as [string, number | Record<string, number>][]) {
      const struct = OWN_STRUCTS.get(name) ?? `struct ${name.toLowerCase()}`;
      if (typeof value === 'number') expected.set(OWN_NAMES.get(name) ?? name, value);
      else if (!('sizeof' in value)) for (const [each, number] of Object.entries(value)) expected.set(each, number);
      else {
        for (const [member, at] of Object.entries(value))
          expected.set(member === 'sizeof' ? `sizeof(${struct})` : `offsetof(${struct}, ${member})`, at);
      }
    }
  }
  return expected;
}

const ownHeaders = process.env.ANYDMA_UAPI_INCLUDE;
const flags = ownHeaders === undefined ? [] : ['-I', ownHeaders];

/** Why a check can not be made here. */
function obstacle({ name, headers, needs }: Check): string | undefined {
  if (process.platform !== 'linux' || spawnSync('gcc', ['--version']).status !== 0) return 'no gcc on Linux here';
  if (needs === undefined) return undefined;
  const macros = spawnSync('gcc', [...flags, '-E', '-dM', '-x', 'c', '-'], { input: headers, encoding: 'utf8' });
  const from = ownHeaders === undefined ? 'this system' : ownHeaders;
  if (macros.status !== 0) return `${from} has no ${name}; ANYDMA_UAPI_INCLUDE can name a directory that has`;
  if (!new RegExp(`^#define ${needs}\\b`, 'm').test(macros.stdout))
    return `${name} of ${from} is too old (no ${needs}); ANYDMA_UAPI_INCLUDE can name a directory with a newer one`;
  return undefined;
}

for (const check of CHECKS) {
  test(`constants and layouts are those of ${check.name}`, { skip: obstacle(check) ?? false }, () => {
    const expected = expectations(check.modules);
    for (const [expression, number] of Object.entries(check.more ?? {})) expected.set(expression, number);
    assert.ok(expected.size >= check.least, `only ${expected.size}`);

    const prints = [...expected.keys()].map((each) => `printf("%lld\\n", (long long)(${each}));`);
    const program = `${check.headers}\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {\n${prints.join('\n')}\nreturn 0;\n}\n`;
    const directory = mkdtempSync(join(tmpdir(), 'uapi-'));
    try {
      writeFileSync(join(directory, 'print.c'), program);
      execFileSync('gcc', [...flags, '-o', 'print', 'print.c'], { cwd: directory });
      const lines = execFileSync(join(directory, 'print'), { encoding: 'utf8' }).trim().split('\n');
      const actual = new Map([...expected.keys()].map((each, i) => [each, Number(lines[i])]));
      assert.deepEqual(actual, expected);
    } finally {
      rmSync(directory, { recursive: true });
    }
  });
}
