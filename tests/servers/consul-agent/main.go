// Command consul-agent is Consul's own agent and nothing else of Consul: the server that the tests
// run. Only a module that requires Consul can build it; `go install` refuses its replace directives.
package main

import (
	"fmt"
	"os"

	"github.com/hashicorp/consul/command/agent"
	"github.com/hashicorp/consul/command/cli"
	mitchellh "github.com/mitchellh/cli"
)

func main() {
	ui := &cli.BasicUI{BasicUi: mitchellh.BasicUi{Writer: os.Stdout, ErrorWriter: os.Stderr}}
	commands := mitchellh.CLI{
		Args: os.Args[1:],
		Name: "consul-agent",
		Commands: map[string]mitchellh.CommandFactory{
			"agent": func() (mitchellh.Command, error) { return agent.New(ui), nil },
		},
		HelpFunc: mitchellh.BasicHelpFunc("consul-agent"),
	}
	status, err := commands.Run()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(status)
}
