/**
 * Reads and writes the captures that come with the sources of tcpdump and Wireshark, beside those two programs: `node
 * dist/test/captures/main.js` (`npm run captures`).
 *
 * The captures are got at the first run, from the source packages of Debian (50 MB), and kept in $ANYDMA_CAPTURES_CACHE, or else in
 * anydma-captures below $XDG_CACHE_HOME or /var/tmp. It needs apt-get, and the programs tcpdump and mergecap (Debian: tcpdump, tshark).
 *
 * Exit status: 0 all is well, 1 a test failed, 77 it can not be run here, and the reason is on standard error.
 */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { cacheDirectory, Unavailable } from '../shared/cached.js';
import { shippedCaptures } from './shipped.js';

try {
  for (const [program, option] of [
    ['mergecap', '--version'],
    ['tcpdump', '--version'],
  ] as const)
    if (spawnSync(program, [option]).error !== undefined)
      throw new Unavailable(`it needs ${program} (Debian packages: tcpdump, tshark)`);
  const cache = cacheDirectory('ANYDMA_CAPTURES_CACHE', 'anydma-captures');
  const directory = await shippedCaptures(cache, (line) => console.log(line));
  const file = fileURLToPath(new URL('captures.js', import.meta.url));
  const { status } = spawnSync(process.execPath, ['--test', '--test-reporter=spec', '--test-timeout=600000', file], {
    stdio: 'inherit',
    env: { ...process.env, ANYDMA_CAPTURES: directory },
  });
  process.exitCode = status ?? 1;
} catch (error) {
  if (!(error instanceof Unavailable)) throw error;
  console.error(`the captures can not be read here: ${error.message}`);
  process.exitCode = 77;
}
