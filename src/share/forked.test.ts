/** Child processes of a program that uses this library inherit nothing of it, whether or not they import it, too. */
import assert from 'node:assert/strict';
import { fork, type ChildProcess } from 'node:child_process';
import cluster from 'node:cluster';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { Eal } from '../eal.js';
import { openPlatform } from '../platform/open.js';
import { MiB } from '../units.js';

const SKIP = { skip: openPlatform().limitation ?? false };
const INDEX = JSON.stringify(new URL('../index.js', import.meta.url).href);

/** What a process has of this library: descriptors and mappings of its memory, and of devices. */
function traces(pid: number | 'self'): string[] {
  const folder = `/proc/${pid}/fd`;
  const links = readdirSync(folder).flatMap((fd) => {
    try {
      return [readlinkSync(`${folder}/${fd}`)];
    } catch {
      // The descriptor that read the folder.
      return [];
    }
  });
  const maps = readFileSync(`/proc/${pid}/maps`, 'utf8').split('\n');
  return [...links, ...maps].filter((line) => /memfd:anydma|hugepages|\/dev\/(vfio|iommu)/.test(line));
}

describe('a child process', SKIP, () => {
  let eal: Eal;
  let folder: string;
  let program: string;
  before(async () => {
    eal = await Eal.start({ onForgotten: () => undefined, memory: { onNotice: () => undefined } });
    folder = mkdtempSync(join(tmpdir(), 'anydma-'));
    program = join(folder, 'child.mjs');
    writeFileSync(
      program,
      `import { attach, Eal } from ${INDEX};
       process.on('message', (shared) => {
         try { attach(shared); process.send('attached'); }
         catch (error) { process.send(error.code + ': ' + error.message); }
       });
       process.send(typeof Eal);`,
    );
  });
  after(async () => {
    await eal.stop();
    rmSync(folder, { recursive: true });
  });

  const children = {
    'fork() of child_process': () => fork(program),
    'fork() of cluster': () => {
      cluster.setupPrimary({ exec: program });
      return cluster.fork().process;
    },
  };
  for (const [name, start] of Object.entries(children))
    it(`inherits neither descriptors nor memory, and can not attach by a message: ${name}`, async () => {
      using memory = eal.external.allocate(MiB);
      using block = eal.malloc(MiB);
      memory.bytes().fill(1);
      block.bytes().fill(2);
      assert.ok(traces('self').length >= 2);
      const child: ChildProcess = start();
      try {
        assert.deepEqual(await once(child, 'message'), ['function', undefined]);
        assert.deepEqual(traces(child.pid ?? 0), []);
        child.send(memory.share());
        const [said] = (await once(child, 'message')) as [string];
        assert.match(said, /^EINVAL: .*only threads of one process can have them/);
      } finally {
        child.kill('SIGKILL');
        await once(child, 'exit');
      }
    });

  it('is sent nothing that is shared where messages keep their types', async () => {
    using memory = eal.external.allocate(MiB);
    const child = fork(program, { serialization: 'advanced' });
    try {
      await once(child, 'message');
      assert.throws(() => child.send(memory.share()), { name: 'Error', message: /SharedArrayBuffer/ });
    } finally {
      child.kill('SIGKILL');
      await once(child, 'exit');
    }
  });
});
