/** ioctl(2) on Linux. */
import { invalid } from '../../errors.js';
import { check, checkFd, fail } from './libc.js';
import type { Libc } from './libc.js';
import type { IoctlPort } from '../ports.js';

/** The {@link IoctlPort} that makes real system calls. */
export function linuxIoctl(libc: Libc): IoctlPort {
  const checkCall = (fd: number, request: number, name: string): void => {
    checkFd(fd, name);
    if (!(request >= 0 && request < 2 ** 32)) throw invalid(name, `${request} is not an ioctl number`);
  };
  return {
    call(fd, request, argument, name) {
      checkCall(fd, request, name);
      if (typeof argument === 'number' && !Number.isSafeInteger(argument))
        throw invalid(name, `${argument} can not be passed by value`);
      const result =
        typeof argument === 'number' ? libc.ioctlValue(fd, request, argument) : libc.ioctl(fd, request, argument);
      // Without this test the text would be built for every successful call.
      return result === -1 ? check(libc, result, name, `ioctl of fd ${fd}`) : result;
    },

    async callAsync(fd, request, argument, name) {
      checkCall(fd, request, name);
      const { result, errno } = await libc.later.ioctl(fd, request, argument);
      return result === -1 ? fail(errno, name, `ioctl of fd ${fd}`) : result;
    },
  };
}
