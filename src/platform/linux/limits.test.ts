import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import assert from 'node:assert/strict';
import { isDmaError } from '../../errors.js';
import { openPlatform } from '../open.js';

const platform = openPlatform();
const { limits, memory } = platform;
const skip = platform.limitation ?? false;

test('the limit is a number of bytes or Infinity, and use is within it', { skip }, () => {
  const { limit, used } = limits.lockedMemory();
  assert.ok(limit === Infinity || Number.isSafeInteger(limit));
  assert.ok(used >= 0 && used % 1024 === 0 && used <= limit);
});

test('what is locked is used, and is not pinned', { skip }, (t) => {
  const length = 4 * memory.pageSize;
  const { used } = limits.lockedMemory();
  const pinned = limits.pinnedMemory();
  assert.match(readFileSync('/proc/self/status', 'utf8'), new RegExp(`^VmPin:\\s*${pinned / 1024} kB$`, 'm'));
  const va = memory.map({ length });
  try {
    memory.lock(va, length);
    assert.equal(limits.lockedMemory().used, used + length);
    assert.equal(limits.pinnedMemory(), pinned);
  } catch (error) {
    if (!isDmaError(error)) throw error;
    t.skip(error.message);
  } finally {
    memory.unmap(va, length);
  }
  assert.equal(limits.lockedMemory().used, used);
});

test('a process that may not lock more has the limit it was started with', { skip }, (t) => {
  const url = new URL('../open.js', import.meta.url).href;
  const code = `import { openPlatform } from '${url}'; console.log(openPlatform().limits.lockedMemory().limit)`;
  const limited = `ulimit -l 64 && exec "$0" --input-type=module -e "$1"`;
  const drop = ['--bounding-set', '-ipc_lock', '--inh-caps', '-ipc_lock'];
  const isRoot = process.getuid?.() === 0;
  const [command, args] = isRoot ? ['setpriv', [...drop, 'sh', '-c']] : ['sh', ['-c']];
  const child = spawnSync(command, [...args, limited, process.execPath, code], { encoding: 'utf8' });
  if (child.status !== 0) return t.skip(`a limited process can not be started: ${child.stderr || String(child.error)}`);
  assert.equal(child.stdout.trim(), '65536');
});

test('free hugepages are those of sysfs, and undefined for sizes there are not', { skip }, (t) => {
  assert.equal(limits.freeHugePages(4096), undefined);
  assert.equal(limits.freeHugePages(NaN), undefined);
  const root = '/sys/kernel/mm/hugepages';
  let sizes: string[];
  try {
    sizes = readdirSync(root);
  } catch {
    return t.skip('this kernel has no hugepages');
  }
  for (const name of sizes) {
    const free = limits.freeHugePages(parseInt(name.slice('hugepages-'.length), 10) * 1024);
    assert.ok(free !== undefined && free <= Number(readFileSync(`${root}/${name}/free_hugepages`, 'utf8')));
  }
});
