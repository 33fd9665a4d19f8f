/** In a container: nothing depends on system calls that the default seccomp profile of Docker denies. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { noSandbox, sandboxed } from '../test/shared/seccomp.js';
import { openPlatform } from './platform/open.js';

const skip = openPlatform().limitation ?? noSandbox;

test(
  'the default seccomp profile of Docker: memory, pools and a vfio-user device work under it',
  { skip },
  async () => {
    const program = `
    const { copyEngineDriver, Eal, KiB, MiB } = await import(${JSON.stringify(new URL('./index.js', import.meta.url).href)});
    const { spawnDevice } = await import(${JSON.stringify(new URL('./entry/model.js', import.meta.url).href)});
    const eal = await Eal.start({ memory: { onNotice: () => undefined }, onForgotten: () => undefined });
    const block = eal.malloc(2 * MiB);
    block.bytes().fill(1);
    for (const source of ['memfd', 'anonymous']) eal.external.allocate(MiB, { source }).bytes().fill(2);
    (await eal.external.allocateAsync(MiB)).bytes().fill(3);
    eal.external.registerPagesOf(Buffer.alloc(64 * KiB));
    const pool = eal.pools.create({ elements: 100, elementSize: 2048 });
    const served = await spawnDevice('copy');
    const device = await eal.probe('vfio-user:' + served.socketPath);
    const source = eal.external.allocate(MiB);
    const target = eal.external.allocate(MiB);
    source.bytes().fill(7);
    const from = device.dmaMap(source);
    const to = device.dmaMap(target);
    await device.use(copyEngineDriver).copy(from.iova, to.iova, MiB);
    const last = target.bytes()[MiB - 1];
    from.unmap();
    to.unmap();
    await served.close();
    await eal.stop();
    const { readFileSync } = await import('node:fs');
    const [, seccomp] = /^Seccomp:\\s*(\\d)/m.exec(readFileSync('/proc/self/status', 'utf8'));
    console.log(JSON.stringify({ last, elements: pool.vas.length, seccomp }));
    process.exit(0);`;
    const { stdout } = await promisify(execFile)(process.execPath, [
      '--input-type=module',
      '-e',
      sandboxed(program, import.meta.url),
    ]);
    // 2: a filter is there (SECCOMP_MODE_FILTER).
    assert.deepEqual(JSON.parse(stdout), { last: 7, elements: 100, seccomp: '2' });
  },
);
