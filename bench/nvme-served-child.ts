/** Serves a disk image for `nvme-served.ts`, and tells what that costs: an answer for each message. */
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { openPlatform } from '../src/platform/open.js';
import { deviceModel } from '../src/vfio-user/devices/catalog.js';
import { serve } from '../src/vfio-user/server.js';

/** What a server has used and how late its event loop was since the last message. */
export interface ServedCost {
  /** milliseconds of CPU time */
  readonly cpu: number;
  /** The longest delay of the event loop, milliseconds. */
  readonly delay: number;
}

const [, , socketPath, file] = process.argv;
serve(openPlatform(), { socketPath, model: deviceModel('nvme', { namespaces: [{ file }] }) });
const delay = monitorEventLoopDelay({ resolution: 1 });
delay.enable();
let before = process.cpuUsage();
process.on('message', () => {
  const { user, system } = process.cpuUsage(before);
  const cost: ServedCost = { cpu: (user + system) / 1000, delay: delay.max / 1e6 };
  before = process.cpuUsage();
  delay.reset();
  process.send?.(cost);
});
process.on('disconnect', () => process.exit(0));
process.send?.('serves');
