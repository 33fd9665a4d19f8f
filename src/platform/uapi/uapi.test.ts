/** Every number and layout in this folder against the kernel's and the C library's own headers, by a C program. */
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import assert from 'node:assert/strict';
import * as eventfd from './eventfd.js';
import * as eventpoll from './eventpoll.js';
import * as falloc from './falloc.js';
import * as fcntl from './fcntl.js';
import * as memfd from './memfd.js';
import * as mempolicy from './mempolicy.js';
import * as mman from './mman.js';
import * as poll from './poll.js';
import * as resource from './resource.js';
import * as socket from './socket.js';
import * as stat from './stat.js';
import { syscallNumbers } from './unistd.js';

const HEADERS = `
#define _GNU_SOURCE
#include <stddef.h>
#include <stdio.h>
#include <fcntl.h>
#include <poll.h>
#include <linux/capability.h>
#include <linux/falloc.h>
#include <linux/memfd.h>
#include <linux/mempolicy.h>
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
`;

/** Not names of the headers but this library's own, and what they must equal there. */
const OWN_NAMES: ReadonlyMap<string, string> = new Map([
  ['MOST_FDS', '253'],
  ['EPOLL_EVENT_ROOM', '16'],
]);

const STRUCTS: ReadonlyMap<string, string> = new Map([
  ['STATX', 'statx'],
  ['SOCKADDR_UN', 'sockaddr_un'],
  ['MSGHDR', 'msghdr'],
  ['IOVEC', 'iovec'],
  ['CMSGHDR', 'cmsghdr'],
  ['POLLFD', 'pollfd'],
  ['RLIMIT', 'rlimit'],
]);

const hasCompiler = process.platform === 'linux' && spawnSync('gcc', ['--version']).status === 0;

test('constants and layouts are those of the C headers', { skip: hasCompiler ? false : 'no gcc on Linux here' }, () => {
  const expected = new Map<string, number>();
  for (const module of [eventfd, eventpoll, falloc, fcntl, memfd, mempolicy, mman, poll, resource, socket, stat]) {
    for (const [name, value] of Object.entries(module) as [string, number | Record<string, number>][]) {
      if (typeof value === 'number') expected.set(OWN_NAMES.get(name) ?? name, value);
      else {
        const struct = `struct ${STRUCTS.get(name) ?? name}`;
        for (const [member, at] of Object.entries(value))
          expected.set(member === 'size' ? `sizeof(${struct})` : `offsetof(${struct}, ${member})`, at);
      }
    }
  }
  for (const [name, number] of Object.entries(syscallNumbers(process.arch))) expected.set(`__NR_${name}`, number);
  assert.ok(expected.size > 85);
  assert.equal(OWN_NAMES.size, 2);

  const prints = [...expected.keys()].map((each) => `printf("%lld\\n", (long long)(${each}));`);
  const directory = mkdtempSync(join(tmpdir(), 'uapi-'));
  try {
    writeFileSync(join(directory, 'print.c'), `${HEADERS}\nint main(void) {\n${prints.join('\n')}\nreturn 0;\n}\n`);
    execFileSync('gcc', ['-o', 'print', 'print.c'], { cwd: directory });
    const lines = execFileSync(join(directory, 'print'), { encoding: 'utf8' }).trim().split('\n');
    const actual = new Map([...expected.keys()].map((each, i) => [each, Number(lines[i])]));
    assert.deepEqual(actual, expected);
  } finally {
    rmSync(directory, { recursive: true });
  }
});
