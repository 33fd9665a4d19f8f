/**
 * The long form of the batteries of hostile peers: every message torn at every byte. It takes some minutes. At its end it tells
 * what took longest until the process that was attacked was back.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openPlatform } from '../../src/platform/open.js';
import { attackServer } from './battery.js';
import { attackExchange } from './exchange.js';
import { attackClient } from './servers.js';
import { Times } from './times.js';

const platform = openPlatform();
const times = new Times();
for (const [what, attack] of [
  ['server', attackServer],
  ['client', attackClient],
] as const) {
  const folder = mkdtempSync(join(tmpdir(), 'hostile-'));
  try {
    console.log(`the ${what} outlived ${await attack(platform, folder, { every: 1, some: 1, times })} attacks`);
  } finally {
    rmSync(folder, { recursive: true });
  }
}
await attackExchange(1, times);
console.log('the server of the exchange outlived all of it');
console.log(['the longest until the process was back:', ...times.lines(24)].join('\n'));
if (process.getuid?.() !== 0) console.log('as root there are also peers of another user, hugepages and FUSE');
