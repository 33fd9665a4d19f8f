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

/** Bundles a program and runs it: {@link PROGRAM}, by itself unless there is a `host` that is to load it. */
function bundled(
  format: 'esm' | 'cjs',
  others: readonly string[] = [],
  { program: source = PROGRAM, host }: { readonly program?: string; readonly host?: string } = {},
): { stdout: string; stderr: string } {
  const folder = mkdtempSync(join(tmpdir(), 'bundle-'));
  try {
    writeFileSync(join(folder, 'in.js'), source);
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
    const main = host === undefined ? [] : ['-e', host];
    const { status, stdout, stderr } = spawnSync(process.execPath, [...main, join(out, 'in.js')], {
      encoding: 'utf8',
      env,
    });
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

  it('cjs in a vm context, as test runners load programs: errors of Node, buffers of outside, and disposal', () => {
    const program = `
      import { copyEngineDriver, Eal, MiB } from ${JSON.stringify(at('./index.js'))};
      async function main() {
        const eal = await Eal.start({ onForgotten: () => undefined, memory: { noHuge: true } });
        const device = await eal.probe('vdev:copy0');
        const [from, to] = [eal.external.allocate(MiB), eal.external.allocate(MiB)];
        await device.use(copyEngineDriver).copy(device.dmaMap(from).iova, device.dmaMap(to).iova, MiB);
        for (const outside of [buffers.array, buffers.shared, buffers.view])
          eal.external.registerPagesOf(outside).memory.unregister();
        const pool = eal.pools.create({ elements: 64, elementSize: 64 });
        pool.get(buffers.numbers, 8);
        pool.put(buffers.numbers, 8);
        for (const name of ['pci:0000:ff:1f.0', 'vfio-user:/nowhere/x.sock'])
          await eal.probe(name).catch((error) => console.log(error.name, error.code));
        await device.dmaMapAsync(eal.external.allocate(MiB), { onProgress: buffers.fail })
          .catch((error) => console.log(error.code, error.reason));
        await eal.stop();
        console.log('stopped');
      }
      main().catch((error) => console.log(error));
    `;
    const host = `
      const { readFileSync } = require('node:fs');
      const { createRequire } = require('node:module');
      const vm = require('node:vm');
      const path = process.argv[1];
      const buffers = {
        array: new ArrayBuffer(1 << 20),
        shared: new SharedArrayBuffer(1 << 20),
        view: new Float64Array(1 << 17),
        numbers: new Int32Array(8),
        fail: () => { throw new TypeError('from outside'); },
      };
      const { performance, queueMicrotask, setImmediate, clearImmediate, setTimeout, clearTimeout, URL, Buffer } = globalThis;
      const { AbortSignal, AbortController } = globalThis;
      const parsingContext = vm.createContext({
        buffers, console, process, performance, queueMicrotask, setImmediate, clearImmediate, setTimeout, clearTimeout, URL, Buffer,
        AbortSignal, AbortController,
      });
      const names = ['require', 'module', '__filename'];
      vm.compileFunction(readFileSync(path, 'utf8'), names, { parsingContext })(createRequire(path), { exports: {} }, path);
    `;
    const { stdout, stderr } = bundled('cjs', [], { program, host });
    const rest = 'DmaError ENOENT\nECANCELED cancelled, because onProgress threw: from outside\nstopped\n';
    assert.deepEqual([stdout, stderr], [`DmaError ENODEV\n${rest}`, '']);
  });
});
