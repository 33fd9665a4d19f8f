/**
 * Random commands of the NVMe driver to the served controller, against a model of the disk:
 * `node dist/test/model/nvme.js [--commands N] [--seed S] [--block-size 512|4096] [--apart]`.
 */
import { parseArgs } from 'node:util';
import { nvmeDriver } from '../../src/entry/nvme.js';
import { Eal, MiB } from '../../src/index.js';
import { spawnDevice } from '../../src/vfio-user/device-process.js';
import { nvmeModel } from '../../src/vfio-user/devices/nvme/nvme.js';
import { againstModel, type ModelCounts } from '../shared/nvme-model.js';

const USAGE = `usage: npm run model:nvme -- [options]
  --commands N      so many commands; default: a million
  --seed S          repeat a run
  --block-size N    bytes of a block, 512 or 4096; default: 512
  --apart           the controller is in a process of its own, over vfio-user`;

const { values } = parseArgs({
  options: {
    commands: { type: 'string', default: '1000000' },
    seed: { type: 'string' },
    'block-size': { type: 'string', default: '512' },
    apart: { type: 'boolean', default: false },
    help: { type: 'boolean', default: false },
  },
});
const commands = Number(values.commands);
const seed = values.seed === undefined ? Math.floor(Math.random() * 2 ** 31) : Number(values.seed);
const blockSize = Number(values['block-size']);
const isWrong = !Number.isSafeInteger(commands) || commands < 1 || !Number.isSafeInteger(seed);
if (values.help || isWrong || (blockSize !== 512 && blockSize !== 4096)) {
  console.error(USAGE);
  process.exit(values.help ? 0 : 2);
}

/** Bytes of the disk, all of which are used. */
const SIZE = 16 * MiB;

console.log(`seed ${seed}, ${commands} commands`);
const started = performance.now();
let shown = started;
const show = (counts: ModelCounts): void => {
  if (performance.now() - shown < 10_000) return;
  shown = performance.now();
  console.log(JSON.stringify(counts));
};
try {
  await using server = values.apart
    ? await spawnDevice('nvme', { device: { size: SIZE, blockSize } })
    : { socketPath: undefined, [Symbol.asyncDispose]: () => Promise.resolve() };
  await using eal = await Eal.start({ memory: { onNotice: () => undefined } });
  eal.vdev.define('disk', nvmeModel({ size: SIZE, blockSize }));
  const device = await eal.probe(server.socketPath === undefined ? 'vdev:disk0' : `vfio-user:${server.socketPath}`);
  const [disk] = device.use(nvmeDriver).namespaces;
  const counts = await againstModel(eal, disk, { seed, commands, span: disk.blocks, onProgress: show });
  console.log(JSON.stringify({ ...counts, seed, seconds: Math.round((performance.now() - started) / 1000) }));
  console.log('every byte was as the model says');
} catch (error) {
  console.error(error);
  process.exit(1);
}
