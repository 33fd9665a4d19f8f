/** Every number and layout in this folder against the header of libibverbs, by a C program. */
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import assert from 'node:assert/strict';
import { CONTEXT, mutexSize, VERBS_CONTEXT } from './context.js';
import * as devices from './devices.js';
import * as events from './events.js';
import * as memory from './memory.js';
import * as queues from './queues.js';
import * as cm from './rdma-cm.js';
import * as requests from './requests.js';

const HEADERS = '#include <stddef.h>\n#include <stdio.h>\n#include <infiniband/verbs.h>\n#include <rdma/rdma_cma.h>\n';

/** Lists of names, and what these begin with in the header. */
const ENUMS: ReadonlyMap<string, string> = new Map([
  ['EVENTS', 'IBV_EVENT_'],
  ['CM_EVENTS', 'RDMA_CM_EVENT_'],
  ['WC_STATUSES', 'IBV_WC_'],
]);

function missing(): string | false {
  if (process.platform !== 'linux' || spawnSync('gcc', ['--version']).status !== 0) return 'no gcc on Linux here';
  const { status } = spawnSync('gcc', ['-fsyntax-only', '-x', 'c', '-'], { input: HEADERS });
  return status === 0 ? false : 'no libibverbs-dev and librdmacm-dev here';
}

test('constants and layouts are those of libibverbs', { skip: missing() }, () => {
  const expected = new Map<string, number>([['sizeof(pthread_mutex_t)', mutexSize(process.arch)]]);
  const addStruct = (name: string, members: Readonly<Record<string, number>>): void => {
    const isWhole = name === 'VERBS_CONTEXT' || name.startsWith('RDMA_');
    const struct = `struct ${isWhole ? '' : 'ibv_'}${name.toLowerCase()}`;
    for (const [member, at] of Object.entries(members))
      expected.set(member === 'size' ? `sizeof(${struct})` : `offsetof(${struct}, ${member})`, at);
  };
  for (const module of [cm, devices, events, memory, queues, requests])
    for (const [name, value] of Object.entries(module) as [string, unknown][]) {
      if (typeof value === 'number') expected.set(name, value);
      else if (Array.isArray(value))
        for (const [number, each] of value.entries()) expected.set(`${ENUMS.get(name)}${each}`, number);
      else addStruct(name, value as Readonly<Record<string, number>>);
    }
  addStruct('CONTEXT', CONTEXT);
  addStruct('VERBS_CONTEXT', VERBS_CONTEXT);
  const { mutex } = CONTEXT;
  expected.set('offsetof(struct ibv_context, abi_compat)', mutex + mutexSize(process.arch));
  expected.set('sizeof(struct ibv_context)', mutex + mutexSize(process.arch) + 8);
  assert.ok(expected.size > 250);

  const prints = [...expected.keys()].map((each) => `printf("%lld\\n", (long long)(${each}));`);
  const directory = mkdtempSync(join(tmpdir(), 'verbs-abi-'));
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
