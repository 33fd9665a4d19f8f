/** Programs that have this library inside of one file, as esbuild makes them. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { openPlatform } from './platform/open.js';

const require = createRequire(import.meta.url);
const esbuild = pathOf('esbuild/package.json');
const skip = openPlatform().limitation ?? (esbuild === undefined ? 'esbuild is not installed' : false);

function pathOf(name: string): string | undefined {
  try {
    return require.resolve(name);
  } catch {
    return undefined;
  }
}

const at = (name: string): string => fileURLToPath(new URL(name, import.meta.url));

/** A copy by a device in this process, then by one in another. */
const PROGRAM = `
  import { copyEngineDriver, Eal, MiB } from ${JSON.stringify(at('./index.js'))};
  import { spawnDevice } from ${JSON.stringify(at('./entry/model.js'))};
  async function copy(eal, name) {
    const device = await eal.probe(name);
    const [from, to] = [eal.external.allocate(MiB), eal.external.allocate(MiB)];
    from.bytes().fill(7);
    await device.use(copyEngineDriver).copy(device.dmaMap(from).iova, device.dmaMap(to).iova, MiB);
    return to.bytes()[MiB - 1];
  }
  async function main() {
    const eal = await Eal.start({ onForgotten: () => undefined });
    console.log('vdev', await copy(eal, 'vdev:copy0'));
    try {
      const other = await spawnDevice('copy');
      console.log('process', await copy(eal, 'vfio-user:' + other.socketPath));
      await eal.stop();
      await other.close();
    } catch (error) {
      await eal.stop();
      console.log(error.code, error.hint);
    }
  }
  void main();
`;

/** Bundles and runs {@link PROGRAM}. */
function bundled(format: 'esm' | 'cjs', others: readonly string[] = []): { stdout: string; stderr: string } {
  const folder = mkdtempSync(join(tmpdir(), 'bundle-'));
  try {
    writeFileSync(join(folder, 'in.js'), PROGRAM);
    const out = join(folder, 'out');
    mkdirSync(join(out, 'node_modules'), { recursive: true });
    writeFileSync(join(out, 'package.json'), JSON.stringify({ type: format === 'esm' ? 'module' : 'commonjs' }));
    const koffi = pathOf('koffi');
    if (koffi !== undefined) symlinkSync(dirname(koffi), join(out, 'node_modules', 'koffi'));
    const program = join(dirname(esbuild ?? ''), 'bin', 'esbuild');
    const options = ['--bundle', '--platform=node', `--format=${format}`, '--external:koffi', `--outdir=${out}`];
    const flat = ['--entry-names=[name]', '--log-level=error'];
    const made = spawnSync(program, [join(folder, 'in.js'), ...others, ...options, ...flat], { encoding: 'utf8' });
    assert.equal(made.status, 0, made.stderr + String(made.error));
    const env = { ...process.env, NODE_DEBUG: 'none' };
    const { status, stdout, stderr } = spawnSync(process.execPath, [join(out, 'in.js')], { encoding: 'utf8', env });
    assert.equal(status, 0, stderr);
    return { stdout, stderr };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

describe('a bundle of esbuild', { skip }, () => {
  for (const format of ['esm', 'cjs'] as const) {
    it(`${format}: works; a device in a process of its own is ENOTSUP, and says what to do`, () => {
      const { stdout, stderr } = bundled(format);
      assert.match(stdout, /^vdev 7\nENOTSUP .*--external:anydma.*device-process-main\.js/);
      assert.equal(stderr, '');
    });

    it(`${format}: starts a device in a process of its own whose program was bundled beside it`, () => {
      const { stdout, stderr } = bundled(format, [at('./vfio-user/device-process-main.js')]);
      assert.deepEqual([stdout, stderr], ['vdev 7\nprocess 7\n', '']);
    });
  }
});
