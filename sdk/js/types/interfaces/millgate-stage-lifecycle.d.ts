/// <reference path="./millgate-stage-types.d.ts" />
declare module 'millgate:stage/lifecycle@0.1.0' {
  export function configure(config: string): void;
  export type StageError = import('millgate:stage/types@0.1.0').StageError;
}
