/** The battery of hostile peers for both ends of vfio-user (see test/hostile), a sample of it each round. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openPlatform } from '../../../src/platform/open.js';
import { attackServer } from '../../hostile/battery.js';
import { attackClient } from '../../hostile/servers.js';
import type { Storm } from '../storm.js';

export async function begin(): Promise<Storm> {
  const platform = openPlatform();
  const seen = { 'attacks on a server': 0, 'attacks on a client': 0 };
  const play = async (attack: typeof attackServer): Promise<number> => {
    const folder = mkdtempSync(join(tmpdir(), 'hostile-'));
    try {
      return await attack(platform, folder, { every: 31, some: 37 });
    } finally {
      rmSync(folder, { recursive: true });
    }
  };
  return Promise.resolve({
    seen,
    round: async () => {
      seen['attacks on a server'] += await play(attackServer);
      seen['attacks on a client'] += await play(attackClient);
    },
    close: () => Promise.resolve(),
  });
}
